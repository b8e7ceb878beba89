"""Optimizer, learning rate schedule and train state."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax.errors import UserError, lookup
from corm_jax.sharding import state_shardings


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, steps taken.
      params: float32 parameters.
      batch_stats: float32 running averages of batch normalisation, {} without it.
      opt_state: the optimizer's state.
      ema: variables to evaluate with, exponential moving averages of `params` and `batch_stats`
        ({"params", "batch_stats"}); {} without averaging.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def eval_variables(self) -> dict[str, Any]:
        """Returns the variables to evaluate with: the averaged ones where there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Returns the learning rate as a function of the steps taken before.

    Linear from 0 to `learning_rate` over `warmup_steps`, then half a cosine, to 0 at `train.steps`.

    Raises:
      UserError: if the warm-up is as long as the training.
    """
    optimizer = config.optimizer
    if optimizer.warmup_steps >= config.train.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={optimizer.warmup_steps} is not below "
            f"config.train.steps={config.train.steps}"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        decay_steps=config.train.steps,
    )


def decay_mask(params: Any) -> Any:
    """Returns which parameters decay: kernels, not biases, norms or embeddings."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def create_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Creates AdamW or SGD with Nesterov momentum, with clipping before it if configured.

    Raises:
      UserError: if the optimizer is unknown (names the nearest one) or the schedule impossible.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.optimizer.clip_norm)
        if config.optimizer.clip_norm
        else optax.identity(),
        lookup(OPTIMIZERS, config.optimizer.name, "optimizer")(config),
    )


def _adamw(config: ConfigDict) -> optax.GradientTransformation:
    optimizer = config.optimizer
    return optax.adamw(
        learning_rate_schedule(config),
        b1=optimizer.momentum,
        b2=optimizer.b2,
        weight_decay=optimizer.weight_decay,
        mask=decay_mask,
    )


def _sgd(config: ConfigDict) -> optax.GradientTransformation:
    optimizer = config.optimizer
    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay, mask=decay_mask),
        optax.sgd(learning_rate_schedule(config), momentum=optimizer.momentum, nesterov=True),
    )


OPTIMIZERS = {"adamw": _adamw, "sgd": _sgd}


def abstract_state(config: ConfigDict, model: nn.Module, mesh: Mesh) -> TrainState:
    """Returns the train state's shapes, dtypes and shardings, nothing allocated."""
    shapes = jax.eval_shape(lambda: _initialize(config, model))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def create_state(config: ConfigDict, model: nn.Module, abstract: TrainState) -> TrainState:
    """Initialises the train state from `config.seed`, each array where `abstract` places it."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: _initialize(config, model), out_shardings=shardings)()


def _initialize(config: ConfigDict, model: nn.Module) -> TrainState:
    size = config.data.image_size
    images = jnp.zeros((1, size, size, 3), jnp.float32)
    variables = {
        "batch_stats": {},
        **model.init(jax.random.key(config.seed), images, train=False),
    }
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=create_optimizer(config).init(variables["params"]),
        # Copies: the step donates the state, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, variables) if config.train.ema_decay else {},
    )

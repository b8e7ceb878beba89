"""Optimizer, learning rate schedule and train state."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax.errors import UserError, lookup
from corm_jax.models.layers import depths, heads
from corm_jax.sharding import state_shardings

Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, steps taken.
      params: float32 parameters.
      batch_stats: float32 running averages of batch normalisation, {} without it.
      opt_state: the optimizer's state, of the parameters that it trains alone.
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
        return self.ema or self.variables()

    def variables(self) -> Variables:
        """Returns {"params", "batch_stats"}."""
        return {"params": self.params, "batch_stats": self.batch_stats}


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


def changing(config: ConfigDict, model: nn.Module, variables: Variables) -> Variables:
    """Returns the part of a model's variables that training changes.

    Args:
      config: the run's config.
      model: whose variables they are.
      variables: {"params", "batch_stats"}.

    Returns:
      {"params", "batch_stats"}: all of them, or the classifier's parameters alone.

    Raises:
      UserError: if `config.optimizer.trainable` is unknown, or it is "head" and the model does not
        say what its head is.
    """
    select = lookup(TRAINABLE, config.optimizer.trainable, "config.optimizer.trainable")
    return select(model, variables)


def _all(model: nn.Module, variables: Variables) -> Variables:
    del model
    return variables


def _head(model: nn.Module, variables: Variables) -> Variables:
    params = variables["params"]
    head = {name: params[name] for name in heads(model) if name in params}
    return {"params": head, "batch_stats": {}}


TRAINABLE: dict[str, Callable[[nn.Module, Variables], Variables]] = {"all": _all, "head": _head}


def create_optimizer(config: ConfigDict, model: nn.Module) -> optax.GradientTransformation:
    """Creates AdamW or SGD with Nesterov momentum, with clipping before it if configured.

    It takes the parameters that are `changing`. A layer's steps, weight decay included, are
    multiplied by `layer_decay` to the power of the layers between it and the top (BEiT: Bao et al.
    2021, arXiv:2106.08254).

    Raises:
      UserError: if the optimizer is unknown (names the nearest one) or the schedule impossible.
    """
    optimizer = config.optimizer
    parts = [
        optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity(),
        lookup(OPTIMIZERS, optimizer.name, "optimizer")(config),
    ]
    if optimizer.layer_decay < 1:
        parts.append(_scale_by_depth(model, optimizer.layer_decay))
    return optax.chain(*parts)


def _scale_by_depth(model: nn.Module, decay: float) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Any:
        del params
        flat = flatten_dict(updates, sep="/")
        depth = depths(model, flat)
        top = max(depth.values())
        scaled = {path: decay ** (top - depth[path]) * leaf for path, leaf in flat.items()}
        return unflatten_dict(scaled, sep="/")

    return optax.stateless(scale)


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
    shapes = jax.eval_shape(lambda: _initialize(config, model, {}))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def create_state(
    config: ConfigDict,
    model: nn.Module,
    abstract: TrainState,
    trained: Mapping[str, Any] | None = None,
) -> TrainState:
    """Initialises the train state, each array where `abstract` places it.

    Args:
      config: the run's config; what is not trained yet is drawn from `config.seed`.
      model: maps images to (logits, intermediates).
      abstract: from `abstract_state`.
      trained: variables to start from, as `corm_jax.init.fit` returns them.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    create = jax.jit(
        lambda variables: _initialize(config, model, variables), out_shardings=shardings
    )
    return create(trained or {})


def _initialize(config: ConfigDict, model: nn.Module, trained: Mapping[str, Any]) -> TrainState:
    size = config.data.image_size
    images = jnp.zeros((1, size, size, 3), jnp.float32)
    variables = {
        "batch_stats": {},
        **model.init(jax.random.key(config.seed), images, train=False),
    }
    variables = {name: {**tree, **trained.get(name, {})} for name, tree in variables.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **variables,
        opt_state=create_optimizer(config, model).init(
            changing(config, model, variables)["params"]
        ),
        # Copies: the step donates the state, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, variables) if config.train.ema_decay else {},
    )

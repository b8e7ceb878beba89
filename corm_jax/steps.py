"""One training step: terms averaged, weighed, summed, differentiated, applied."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax.errors import lookup
from corm_jax.losses.cam import cam_alignment
from corm_jax.losses.controls import CONTROLS
from corm_jax.losses.gradients import input_gradient
from corm_jax.losses.noisy import noisy_cross_entropy
from corm_jax.losses.shared import SharedForward
from corm_jax.losses.terms import build, cross_entropy
from corm_jax.losses.types import Batch, Forward, Outputs, Term
from corm_jax.masks import resample
from corm_jax.sharding import batch_sharding, replicated
from corm_jax.state import TrainState, changing, create_optimizer

Metrics = dict[str, jax.Array]

# Terms whose gradient others are compared with.
REFERENCES = (cross_entropy, noisy_cross_entropy)
# Terms that take a derivative of the forward.
LINEARIZING = (input_gradient, cam_alignment)

CONTROL_STREAM = 1  # folded into a step's key for draws that are not a term's


def expand_batch(batch: Batch) -> Batch:
    """Turns a loaded batch into what losses and metrics work on, on the device.

    Args:
      batch: as `corm_jax.data.pipeline.Loader.batches` yields it.

    Returns:
      `image` float32 [B, H, W, 3] in [0, 1]; `core_mask` and `mask_valid` float32 [B, H, W, 1],
      both 0 for an image without mask; `label`, `id`, `weight`, `has_mask` as they were.
    """
    size = batch["image"].shape[1]
    has_mask = batch["has_mask"][:, None, None, None]
    if "core_grid" in batch:
        grid = batch["core_grid"].astype(jnp.float32) / 255.0
        core_mask = resample.resample(grid, batch["mask_window"], size)
    else:
        core_mask = batch["core_mask"][..., None].astype(jnp.float32) / 255.0
    valid = resample.validity(batch["mask_window"], size) * has_mask
    return {
        "image": batch["image"].astype(jnp.float32) / 255.0,
        "core_mask": core_mask * valid,
        "mask_valid": valid,
        **{key: batch[key] for key in ("label", "id", "weight", "has_mask")},
    }


def _weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return (values * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


class Objective:
    """The weighted sum of an objective's terms, as a function of the parameters."""

    def __init__(self, config: ConfigDict, model: nn.Module) -> None:
        """Builds the terms of `config.terms`.

        Raises:
          UserError: if a term, a parameter or the control is unknown; names it.
        """
        self._model = model
        # A frozen trunk runs as in evaluation: by its running averages, which stay as they are.
        self._train = config.optimizer.trainable == "all"
        self.changing = partial(changing, config, model)
        self._terms: dict[str, tuple[float | optax.Schedule, Term]]
        self._terms = build(config.terms.to_dict())
        self._control = lookup(CONTROLS, config.control, "control")
        self._label_smoothing = config.train.label_smoothing
        self._seed = config.seed

    def batch(self, batch: Batch, step: jax.Array) -> Batch:
        """Returns a loaded batch as terms take it (see `corm_jax.losses.terms`).

        Args:
          batch: as `expand_batch` takes it.
          step: int32 scalar, the number of the step that it is for.
        """
        control_key = jax.random.fold_in(self._key(step), CONTROL_STREAM)
        batch = self._control(expand_batch(batch), control_key)
        target = jax.nn.one_hot(batch["label"], self._model.num_classes, dtype=jnp.float32)
        target = optax.smooth_labels(target, self._label_smoothing)
        non_core = batch["mask_valid"] * (1.0 - batch["core_mask"])
        return {**batch, "target": target, "non_core": non_core}

    def term(
        self, label: str, forward: Forward, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns (mean loss of one term times its weight in this step, its logs).

        Terms share views, and with them passes, of the very same `batch` and `key`.

        The logs are `value`, the mean without the weight; `weight`, if it changes over time; and
        the term's own.
        """
        weight, function = self._terms[label]
        losses, logs = function(forward, batch, key)
        value = _weighted_mean(losses, batch["weight"])
        logs = {"value": value, **logs}
        if callable(weight):
            weight = logs["weight"] = jnp.asarray(weight(step), jnp.float32)
        return weight * value, {f"terms/{label}/{name}": log for name, log in logs.items()}

    def total(self, params: Any, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        """Returns (loss, (logs, new running averages)).

        Args:
          params: that are `changing`; the others are the state's.
          state: the train state.
          batch: from `batch`.
        """
        total, metrics = jnp.zeros((), jnp.float32), {}
        forward, key = self._forward(state, params), self._key(state.step)
        batch = {**batch, "views": {}}
        for label in sorted(self._terms, key=self._order):
            value, logs = self.term(label, forward, batch, state.step, key)
            total += value
            metrics.update(logs)
        batch_stats = state.batch_stats
        if batch_stats:
            # Of the clean images where a term passes them, as evaluation sees these most. Where
            # none does, of the first view: a pass for the averages alone would cost a sixth.
            batch_stats = forward.batch_stats(batch["image"])
        return total, (metrics, batch_stats)

    def _order(self, label: str) -> int:
        """Sorts terms that take the forward's derivative before others, which then share it."""
        return 0 if self._terms[label][1].func in LINEARIZING else 1

    def _forward(self, state: TrainState, params: Any) -> SharedForward:
        return SharedForward(partial(self._apply, state, params))

    def _key(self, step: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self._seed), step)

    def _apply(
        self, state: TrainState, params: Any, images: jax.Array, **inputs: jax.Array
    ) -> tuple[Outputs, Any]:
        variables = {"params": {**state.params, **params}, "batch_stats": state.batch_stats}
        outputs, updates = self._model.apply(
            variables, images, train=self._train, mutable=["batch_stats"], **inputs
        )
        return outputs, updates.get("batch_stats", {})

    def diagnose(self, state: TrainState, batch: Batch) -> Metrics:
        """Returns each weighted term's `gradient_norm`, and its `gradient_cosine` if it has one.

        The norm is L2, over all parameters that are trained. The cosine is that of the angle
        between the gradients of the term and of the objective's first cross entropy (`REFERENCES`);
        0 where one is zero.
        """
        batch, key = self.batch(batch, state.step), self._key(state.step)

        def gradient(label: str) -> Any:
            def loss(params: Any) -> jax.Array:
                forward = self._forward(state, params)
                return self.term(label, forward, batch, state.step, key)[0]

            return jax.grad(loss)(self.changing(state.variables())["params"])

        gradients = {label: gradient(label) for label in self._terms}
        norms = {label: _norm(tree) for label, tree in gradients.items()}
        found = {f"terms/{label}/gradient_norm": norm for label, norm in norms.items()}
        references = [label for label in gradients if self._terms[label][1].func in REFERENCES]
        for label in gradients if references else ():
            if label != references[0]:
                product = optax.tree_utils.tree_vdot(gradients[label], gradients[references[0]])
                lengths = norms[label] * norms[references[0]]
                cosine = jnp.where(lengths > 0, product / jnp.where(lengths > 0, lengths, 1.0), 0.0)
                found[f"terms/{label}/gradient_cosine"] = cosine
        return found


def make_train_step(
    config: ConfigDict, model: nn.Module, mesh: Mesh, abstract: TrainState
) -> tuple[
    Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    Callable[[TrainState, Batch], Metrics],
]:
    """Compiles the training step and its diagnosis.

    Args:
      config: the run's config.
      model: maps images to (logits, intermediates).
      mesh: from `corm_jax.sharding.create_mesh`.
      abstract: from `corm_jax.state.abstract_state`.

    Returns:
      (step, diagnose). step(state, batch) -> (new state, metrics); it donates the state.
      diagnose(state, batch) -> each term's gradient norm and cosine: a backward pass for every
      term, so it runs where something is logged, not in every step.
    """
    objective = Objective(config, model)
    optimizer = create_optimizer(config, model)
    decay = config.train.ema_decay

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = objective.batch(batch, state.step)
        gradient = jax.value_and_grad(objective.total, has_aux=True)
        trained = objective.changing(state.variables())["params"]
        (loss, (metrics, batch_stats)), gradients = gradient(trained, state, batch)
        # Optax mixes its integer counts with floats, where everything here promotes strictly.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        params = {**state.params, **trained}
        ema = state.ema
        if decay:
            # Of what changes alone: an average of equal numbers may round to another.
            variables = {"params": params, "batch_stats": batch_stats}
            new, old = objective.changing(variables), objective.changing(ema)
            averages = optax.incremental_update(new, old, 1.0 - decay)
            ema = {name: {**ema[name], **tree} for name, tree in averages.items()}
        metrics |= {
            "loss": loss,
            "gradient_norm": _norm(gradients),
            "parameter_norm": _norm(params),
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
        )
        return state, metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    everywhere = replicated(mesh)
    inputs = (shardings, batch_sharding(mesh))
    return (
        jax.jit(step, in_shardings=inputs, out_shardings=(shardings, everywhere), donate_argnums=0),
        jax.jit(objective.diagnose, in_shardings=inputs, out_shardings=everywhere),
    )

"""One training step: terms averaged, weighed, summed, differentiated, applied.

A step may take its batch in microbatches, one after another (`config.train.microbatches`), which
need less memory. Their gradients add up to that of the batch: each example counts by its weight
over the whole batch's. What examples of a batch share is shared within a microbatch instead:

- batch normalisation takes the statistics of a microbatch (running averages take their mean);
- noise is drawn for each microbatch, and images that lend a background or a mask are of the same
  one: another draw from the same distribution than that of an undivided batch.

Microbatch i of n is examples i, n + i, 2n + i, .. of the batch: the same whatever the devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
from corm_jax.models.remat import remat_blocks
from corm_jax.sharding import batch_sharding, gather, microbatch_sharding, replicated
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


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


class Part(NamedTuple):
    """A microbatch's place in its step.

    Attributes:
      index: int32 scalar, from 0 on.
      weight: float32 scalar, what its sums over examples are divided by: the sum of the weights of
        the whole batch's examples over the number of microbatches, so that means over microbatches
        are those over the batch.
    """

    index: jax.Array
    weight: jax.Array


class Objective:
    """The weighted sum of an objective's terms, as a function of the parameters."""

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        mesh: Mesh | None = None,
        shardings: Any = None,
    ) -> None:
        """Builds the terms of `config.terms`.

        Args:
          config: the run's config.
          model: maps images to (logits, intermediates).
          mesh: that batches are sharded over; None for one device.
          shardings: of the parameters, from `corm_jax.sharding.state_shardings`; None for one
            device.

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
        self._parts = config.train.microbatches
        self._remat = config.model.remat
        self._mesh, self._shardings = mesh, shardings

    def mean(self, function: Callable[[Batch, Part], Any], batch: Batch, step: jax.Array) -> Any:
        """Returns the mean over a step's microbatches of a tree of arrays.

        Args:
          function: of a microbatch, from `batch`, and its place.
          batch: loaded, of the whole step.
          step: int32 scalar, the number of the step.
        """
        weight = jnp.maximum(batch["weight"].sum(), 1.0) / self._parts

        def one(index: jax.Array, batch: Batch) -> Any:
            part = Part(index, weight)
            return function(self.batch(batch, step, part), part)

        if self._parts == 1:
            return one(jnp.zeros((), jnp.int32), batch)
        batches = jax.tree.map(self._split, batch)
        indices = jnp.arange(self._parts, dtype=jnp.int32)

        def add(total: Any, number: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(*number)), None

        shapes = jax.eval_shape(one, indices[0], jax.tree.map(lambda leaf: leaf[0], batches))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (indices, batches))
        return jax.tree.map(lambda leaf: leaf / self._parts, total)

    def _split(self, values: jax.Array) -> jax.Array:
        """Maps [B, ..] to [parts, B / parts, ..], no example leaving its device."""
        split = values.reshape(-1, self._parts, *values.shape[1:]).swapaxes(0, 1)
        if self._mesh is None:
            return split
        return jax.lax.with_sharding_constraint(split, microbatch_sharding(self._mesh))

    def batch(self, batch: Batch, step: jax.Array, part: Part | None = None) -> Batch:
        """Returns a loaded batch as terms take it (see `corm_jax.losses.terms`).

        Args:
          batch: as `expand_batch` takes it.
          step: int32 scalar, the number of the step that it is for.
          part: of the step that it is; None for all of it.
        """
        control_key = jax.random.fold_in(self.key(step, part), CONTROL_STREAM)
        batch = self._control(expand_batch(batch), control_key)
        target = jax.nn.one_hot(batch["label"], self._model.num_classes, dtype=jnp.float32)
        target = optax.smooth_labels(target, self._label_smoothing)
        non_core = batch["mask_valid"] * (1.0 - batch["core_mask"])
        return {**batch, "target": target, "non_core": non_core}

    def term(
        self,
        label: str,
        forward: Forward,
        batch: Batch,
        step: jax.Array,
        key: jax.Array,
        part: Part | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns (mean loss of one term times its weight in this step, its logs).

        Terms share views, and with them passes, of the very same `batch` and `key`.

        The logs are `value`, the mean without the weight; `weight`, if it changes over time; and
        the term's own.
        """
        weight, function = self._terms[label]
        losses, logs = function(forward, batch, key)
        total = jnp.maximum(batch["weight"].sum(), 1.0) if part is None else part.weight
        value = (losses * batch["weight"]).sum() / total
        logs = {"value": value, **logs}
        if callable(weight):
            weight = logs["weight"] = jnp.asarray(weight(step), jnp.float32)
        return weight * value, {f"terms/{label}/{name}": log for name, log in logs.items()}

    def total(
        self, params: Any, state: TrainState, batch: Batch, part: Part | None = None
    ) -> tuple[jax.Array, Any]:
        """Returns (loss, (logs, new running averages)).

        Args:
          params: that are `changing`; the others are the state's.
          state: the train state.
          batch: from `batch`.
          part: of the step that it is; None for all of it.
        """
        total, metrics = jnp.zeros((), jnp.float32), {}
        forward, key = self._forward(state, params), self.key(state.step, part)
        batch = {**batch, "views": {}}
        for label in sorted(self._terms, key=self._order):
            value, logs = self.term(label, forward, batch, state.step, key, part)
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

    def key(self, step: jax.Array, part: Part | None = None) -> jax.Array:
        """Returns the PRNG key of a step, or of a microbatch where steps have several."""
        key = jax.random.fold_in(jax.random.key(self._seed), step)
        return key if part is None or self._parts == 1 else jax.random.fold_in(key, part.index)

    def _forward(self, state: TrainState, params: Any) -> SharedForward:
        apply = partial(self._apply, state)
        if self._remat:
            apply = remat_blocks(apply)
        return SharedForward(partial(apply, params))

    def _apply(
        self, state: TrainState, params: Any, images: jax.Array, **inputs: jax.Array
    ) -> tuple[Outputs, Any]:
        params = {**state.params, **params}
        if self._shardings is not None:
            params = gather(params, self._shardings)
        variables = {"params": params, "batch_stats": state.batch_stats}
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

        def gradients_of(batch: Batch, part: Part) -> dict[str, Any]:
            def gradient(label: str) -> Any:
                def loss(params: Any) -> jax.Array:
                    forward, key = self._forward(state, params), self.key(state.step, part)
                    return self.term(label, forward, batch, state.step, key, part)[0]

                return jax.grad(loss)(self.changing(state.variables())["params"])

            return {label: gradient(label) for label in self._terms}

        gradients = self.mean(gradients_of, batch, state.step)
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
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    objective = Objective(config, model, mesh, shardings.params)
    optimizer = create_optimizer(config, model)
    decay = config.train.ema_decay

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        trained = objective.changing(state.variables())["params"]
        gradient = jax.value_and_grad(objective.total, has_aux=True)
        (loss, (metrics, batch_stats)), gradients = objective.mean(
            lambda batch, part: gradient(trained, state, batch, part), batch, state.step
        )
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

    everywhere = replicated(mesh)
    inputs = (shardings, batch_sharding(mesh))
    return (
        jax.jit(step, in_shardings=inputs, out_shardings=(shardings, everywhere), donate_argnums=0),
        jax.jit(objective.diagnose, in_shardings=inputs, out_shardings=everywhere),
    )

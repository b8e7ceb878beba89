"""Evaluation: protocols by name, exact over every example, the same noise for every model."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax.corruptions import gaussian_noise
from corm_jax.losses.types import Batch
from corm_jax.masks.morphology import dilate
from corm_jax.metrics import ClassAccuracy, relative_core_sensitivity
from corm_jax.sharding import put_batch, replicated
from corm_jax.steps import expand_batch

Counts = dict[str, ClassAccuracy]
EvalStep = Callable[..., Counts]  # (variables, loaded batch) -> counts

# The definition dilates 15 times at 224 x 224 pixels; at other sizes the reach in proportion to
# the image stays the same (project choice).
DILATIONS = 15
DILATION_IMAGE_SIZE = 224

DEFINITIONS = {
    "clean": "accuracy on the images as they are, mean over classes",
    "clean_plain": "accuracy on the images as they are, mean over images",
    "core": "accuracy under noise outside the core region, mean over classes and trials",
    "spurious": "accuracy under noise on the core region, mean over classes and trials",
    "rcs": "(core - spurious) / (2 min(a, 1 - a)), a = (core + spurious) / 2",
    "images": "images that `clean` is measured on",
    "images_with_core": "images with a core mask, which `core` and `spurious` are measured on",
}


def extra_definitions(name: str, classes: int) -> dict[str, str]:
    """Returns the definitions of the metrics of a set that clean accuracy alone is measured on.

    Args:
      name: "counterfactual" or a TFDS data set.
      classes: how many classes occur in it.
    """
    where = f"the test split of {name}"
    if name == "counterfactual":
        where = "images whose backgrounds are independent of the class"
    accuracy = f"accuracy on {where}, predictions among the {classes} classes that occur there"
    return {
        name: f"{accuracy}, mean over classes",
        f"{name}_plain": f"{accuracy}, mean over images",
    }


def dilations(image_size: int) -> int:
    """Returns how often the core mask is dilated for square images of this size in pixels."""
    return round(DILATIONS * image_size / DILATION_IMAGE_SIZE)


def core_region(core_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the core region of the `complement` protocol.

    Args:
      core_mask: float32 [B, H, W, 1] in [0, 1].

    Returns:
      (region float32 [B, H, W, 1]: the dilated mask over its maximum; present float32 [B]: 0 where
      the mask is empty).
    """
    region = dilate(core_mask, dilations(core_mask.shape[1]))
    maximum = region.max(axis=(1, 2, 3), keepdims=True)
    present = (maximum > 0).astype(jnp.float32)
    return region / jnp.where(maximum > 0, maximum, 1.0), present[:, 0, 0, 0]


def trial_keys(seed: int, ids: jax.Array, trial: jax.Array) -> jax.Array:
    """Returns a PRNG key [B] for each image in a trial: by seed, image and trial alone."""
    base = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(base, i), trial))(ids)


def noisy_pair(
    batch: Batch, region: jax.Array, *, seed: int, trial: jax.Array, sigma: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the views of the `complement` protocol.

    Args:
      batch: an expanded batch.
      region: float32 [B, H, W, 1], the core region.
      seed: of the evaluation's noise.
      trial: int32 scalar.
      sigma: standard deviation of the noise in [0, 1] pixel units.

    Returns:
      (images with noise outside the core region, images with noise on it), each float32
      [B, H, W, 3] in [0, 1], with the same draw of noise: the two accuracies are a paired
      comparison. Pixels that the mask says nothing about keep their values in both.
    """
    keys = trial_keys(seed, batch["id"], trial)

    def noisy(region: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, r, k: gaussian_noise(x, r, k, sigma=sigma))(
            batch["image"], region, keys
        )

    valid = batch["mask_valid"]
    return noisy(valid * (1.0 - region)), noisy(valid * region)


def clean_protocol(model: nn.Module, config: ConfigDict) -> EvalStep:
    """Counts clean accuracy alone.

    The step takes a third argument, classes bool [C]: those that a prediction is taken among. As
    published for ImageNet-A and ImageNet-R (Hendrycks et al. 2021, arXiv:1907.07174 and
    arXiv:2006.16241), which have 200 of ImageNet's 1000 classes.
    """
    del config

    def step(variables: Any, batch: Batch, classes: jax.Array) -> Counts:
        batch = expand_batch(batch)
        correct, count = _counting(model, variables, batch["label"], classes)
        return {"clean": count(correct=correct(batch["image"]), weight=batch["weight"])}

    return step


def complement_protocol(model: nn.Module, config: ConfigDict) -> EvalStep:
    """Counts clean, core and spurious accuracy by the `complement` definition.

    The core region is the core mask, dilated (see `dilations`) and divided by its maximum; core
    accuracy has noise outside it, spurious accuracy on it. Images without core mask are left out
    of both. What a mask says nothing about is left as it is (project choice).
    """
    seed, trials, sigma = config.eval.seed, config.eval.trials, config.eval.sigma

    def step(variables: Any, batch: Batch) -> Counts:
        batch = expand_batch(batch)
        region, present = core_region(batch["core_mask"])
        everything = jnp.ones(model.num_classes, bool)
        correct, count = _counting(model, variables, batch["label"], everything)
        weight = batch["weight"] * present

        def one(totals: Counts, trial: jax.Array) -> tuple[Counts, None]:
            core, spurious = noisy_pair(batch, region, seed=seed, trial=trial, sigma=sigma)
            counts = {
                "core": count(correct=correct(core), weight=weight),
                "spurious": count(correct=correct(spurious), weight=weight),
            }
            return {name: totals[name].merge(counts[name]) for name in totals}, None

        zeros = jnp.zeros(model.num_classes, jnp.float32)
        empty = {name: ClassAccuracy(zeros, zeros) for name in ("core", "spurious")}
        totals, _ = jax.lax.scan(one, empty, jnp.arange(trials))
        clean = correct(batch["image"])
        return {
            "clean": count(correct=clean, weight=batch["weight"]),
            "with_core": count(correct=clean, weight=weight),
            **totals,
        }

    return step


PROTOCOLS: dict[str, Callable[[nn.Module, ConfigDict], EvalStep]] = {
    "clean": clean_protocol,
    "complement": complement_protocol,
}


def _counting(
    model: nn.Module, variables: Any, label: jax.Array, classes: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], Callable[..., ClassAccuracy]]:
    """Returns (images -> whether each is classified right, (correct, weight) -> counts)."""

    def correct(images: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, images, train=False)
        return jnp.where(classes, logits, -jnp.inf).argmax(axis=-1) == label

    count = partial(ClassAccuracy.from_model_output, label=label, num_classes=model.num_classes)
    return correct, count


def make_eval_step(protocol: EvalStep, mesh: Mesh) -> EvalStep:
    """Compiles a protocol; its counts are replicated on all devices."""
    return jax.jit(protocol, out_shardings=replicated(mesh))


def evaluate(
    step: EvalStep, variables: Any, batches: Iterable[dict[str, Any]], mesh: Mesh
) -> dict[str, float]:
    """Evaluates over all batches.

    Args:
      step: a protocol compiled by `make_eval_step`.
      variables: the model's.
      batches: loaded batches; padding has weight 0.
      mesh: where to evaluate.

    Returns:
      the metrics of `DEFINITIONS` that the protocol measures; accuracies in [0, 1].
    """
    totals: Counts | None = None
    for batch in batches:
        counts = step(variables, put_batch(batch, mesh))
        totals = counts if totals is None else {k: totals[k].merge(v) for k, v in counts.items()}
    if totals is None:
        raise ValueError("no batches to evaluate on")
    return summarize(totals)


def summarize(totals: Counts) -> dict[str, float]:
    """Turns counts into the metrics of `DEFINITIONS`."""
    results = {
        "clean": totals["clean"].compute(),
        "clean_plain": totals["clean"].compute_plain(),
        "images": totals["clean"].number(),
    }
    if "core" in totals:
        core, spurious = totals["core"].compute(), totals["spurious"].compute()
        results |= {
            "core": core,
            "spurious": spurious,
            "rcs": relative_core_sensitivity(core, spurious),
            "images_with_core": totals["with_core"].number(),
        }
    return results

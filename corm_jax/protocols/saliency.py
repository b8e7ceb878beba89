"""The protocol of saliency alignment: how much of what a model looks at lies on the object."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from corm_jax.errors import UserError
from corm_jax.losses.types import Batch
from corm_jax.protocols.types import Outcomes, Protocol, Scan, outcome
from corm_jax.saliency import CAM_METHODS, class_activation_maps
from corm_jax.steps import expand_batch

THRESHOLD = 0.5  # of maps over their maximum, and of masks
METHODS = (*CAM_METHODS, "input_gradient")


def saliency_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Alignment of a model's saliency for the image's class with the core mask.

    Maps: Grad-CAM and HiResCAM, resized bilinearly to the image, and the input gradient of the
    class's logit, its largest absolute value over the channels; each over its maximum on the image.
    Scores: see `SCORES`. The core mask is taken as it is, not dilated (project choice). Images
    whose core mask nowhere reaches `THRESHOLD` are left out, and so is what a mask says nothing
    about.

    Raises:
      UserError: for a model of another library, whose gradients are not ours.

    Sources: Hard ImageNet (Moayeri et al. 2022) for IoU and delta density.
    """
    del config
    if scan is not jax.lax.scan:
        raise UserError(
            "the saliency protocol needs a model of ours: convert this one by "
            "python -m corm_jax.convert from-torch, or leave the protocol out"
        )

    def measure(variables: Any, batch: Batch) -> Outcomes:
        batch = expand_batch(batch)
        mask, valid = batch["core_mask"][..., 0], batch["mask_valid"][..., 0]
        present = (mask >= THRESHOLD).any(axis=(1, 2)).astype(jnp.float32)
        weight = batch["weight"] * present
        found = {}
        for method, saliency in maps(model, variables, batch["image"], batch["label"]).items():
            for name, score in SCORES.items():
                values = jax.vmap(score)(saliency, mask, valid)
                found[f"{method}_{name}"] = outcome(values, weight)
        return found

    return measure


def maps(model: Any, variables: Any, images: jax.Array, classes: jax.Array) -> dict[str, jax.Array]:
    """Returns each method's saliency of images for classes.

    Args:
      model: one of ours; without class activation maps it has its input gradient alone.
      variables: the model's.
      images: float32 [B, H, W, 3] in [0, 1].
      classes: int32 [B].

    Returns:
      method -> float32 [B, H, W] in [0, 1], 1 at its maximum; 0 everywhere where that is 0.
    """
    forward = partial(model.apply, variables, train=False)

    def logit(images: jax.Array) -> jax.Array:
        logits, _ = forward(images)
        return jnp.take_along_axis(logits, classes[:, None], axis=-1).sum()

    found = {"input_gradient": jnp.abs(jax.grad(logit)(images)).max(axis=-1)}
    if "maps" in jax.eval_shape(forward, images)[1]:
        for method in CAM_METHODS:
            cams, _ = class_activation_maps(forward, images, classes, method=method)
            found[method] = jax.image.resize(cams, images.shape[:3], "bilinear")
    return {method: _over_maximum(found[method]) for method in METHODS if method in found}


def _over_maximum(saliency: jax.Array) -> jax.Array:
    saliency = saliency.astype(jnp.float32)
    maximum = saliency.max(axis=(1, 2), keepdims=True)
    return saliency / jnp.where(maximum > 0, maximum, 1.0)


def iou(saliency: jax.Array, mask: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the intersection over union of map and mask, each where it reaches `THRESHOLD`.

    Args:
      saliency: float32 [H, W] in [0, 1].
      mask: float32 [H, W] in [0, 1].
      valid: float32 [H, W], 0 for what does not count.
    """
    chosen, core = saliency >= THRESHOLD, mask >= THRESHOLD
    both, either = (jnp.where(where, valid, 0.0).sum() for where in (chosen & core, chosen | core))
    return both / jnp.maximum(either, 1.0)


def energy_inside(saliency: jax.Array, mask: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the share of the map's sum that lies on the mask; 0 for an empty map."""
    total = (saliency * valid).sum()
    return (saliency * mask * valid).sum() / jnp.where(total > 0, total, 1.0)


def delta_density(saliency: jax.Array, mask: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the map's mean inside the mask less its mean outside, in [-1, 1]."""

    def mean(region: jax.Array) -> jax.Array:
        return (saliency * region).sum() / jnp.maximum(region.sum(), 1e-6)

    return mean(mask * valid) - mean((1.0 - mask) * valid)


def average_precision(saliency: jax.Array, mask: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the average precision of the map as a score of pixels on the mask.

    sum_n (R_n - R_(n-1)) P_n over the distinct thresholds, without interpolation; equal values are
    taken together.
    """
    score = jnp.where(valid > 0, saliency, -1.0).ravel()  # what does not count comes last
    order = jnp.argsort(-score)
    ordered = -score[order]
    core = (((mask >= THRESHOLD) & (valid > 0)).ravel()[order]).astype(jnp.float32)
    # The last place of each value's run of equals.
    last = jnp.searchsorted(ordered, ordered, side="right") - 1
    precision = jnp.cumsum(core)[last] / (last + 1).astype(jnp.float32)
    return (core * precision).sum() / jnp.maximum(core.sum(), 1.0)


SCORES: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "iou": iou,
    "energy_inside": energy_inside,
    "delta_density": delta_density,
    "average_precision": average_precision,
}

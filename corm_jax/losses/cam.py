"""Alignment of class activation maps with core masks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from corm_jax.errors import lookup
from corm_jax.losses.types import Batch, Forward, Losses
from corm_jax.masks.resample import area_average
from corm_jax.saliency import class_activation_maps

# In units of the logit, which a CAM's values add up to where the head is linear: what is far below
# it decides nothing, and a share of it would have gradients without bound.
EPSILON = 1e-2


def cam_alignment(
    forward: Forward, batch: Batch, key: jax.Array, *, method: str, loss: str
) -> Losses:
    """How far the class activation map of the target's logit is from the core.

    The CAM is that of the class of the largest target, on the image as it is. Masks are averaged
    over the cells of its grid: shares of energy are then those of the CAM resized to the image by
    repetition, at less cost. Only the known region (`mask_valid`) counts. 0 for an image without
    mask or with an empty core mask.

    Args:
      forward: see `corm_jax.losses.terms`.
      batch: see `corm_jax.losses.terms`.
      key: unused.
      method: "grad_cam" or "hires_cam"; see `corm_jax.saliency`.
      loss: "energy" or "iou":
        "energy": sum(CAM * non_core) / (sum(CAM * known) + eps), the share outside the core. 1 less
        the energy-based pointing game, the energy loss of Rao et al. 2023 (arXiv:2303.11932).
        "iou": 1 - sum(c * core) / sum(c + core - c * core), c = CAM / (max(CAM) + eps), the soft
        IoU (project choice). The gradient flows through the maximum, too: held, it would pull at
        the CAM's scale, on which the loss does not depend.

    Returns:
      (losses float32 [B] in [0, 1], computed in float32 whatever the model's dtype; logs
      `outside_energy`, the mean of "energy" over images that count, for either loss).

    Source: Li et al. 2018 (arXiv:1802.10171) train Grad-CAM against pixel masks; Rao et al. 2023
    compare losses for it. eps is a project choice.
    """
    del key
    distance = lookup(CAM_LOSSES, loss, "loss")
    cams, _ = class_activation_maps(
        forward, batch["image"], batch["target"].argmax(axis=-1), method=method
    )
    masks = [batch[name] for name in ("core_mask", "non_core")]
    masks = area_average(jnp.concatenate(masks, axis=-1), *cams.shape[1:])
    core, non_core = masks[..., 0], masks[..., 1]
    counts = (batch["core_mask"] > 0).any(axis=(1, 2, 3)).astype(jnp.float32) * batch["has_mask"]
    shares = jax.lax.stop_gradient(_outside_energy(cams, core, non_core))
    counted = counts * (batch["weight"] > 0).astype(jnp.float32)
    outside = (shares * counted).sum() / jnp.maximum(counted.sum(), 1.0)
    return distance(cams, core, non_core) * counts, {"outside_energy": outside}


def _outside_energy(cams: jax.Array, core: jax.Array, non_core: jax.Array) -> jax.Array:
    known = (cams * (core + non_core)).sum(axis=(1, 2))
    return (cams * non_core).sum(axis=(1, 2)) / (known + EPSILON)


def _soft_iou(cams: jax.Array, core: jax.Array, non_core: jax.Array) -> jax.Array:
    cams = cams * (core + non_core)
    cells = cams.shape[1] * cams.shape[2]
    cams = cams / (cams.max(axis=(1, 2), keepdims=True) + EPSILON / cells)
    both = (cams * core).sum(axis=(1, 2))
    either = (cams + core).sum(axis=(1, 2)) - both
    return 1.0 - both / jnp.where(either > 0, either, 1.0)


# (CAMs, core, non-core, all [B, h, w]) -> losses [B].
CAM_LOSSES: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "energy": _outside_energy,
    "iou": _soft_iou,
}

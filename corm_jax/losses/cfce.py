"""Core-focused cross entropy."""

import jax
import jax.numpy as jnp
import optax

from corm_jax.errors import UserError, lookup
from corm_jax.losses.types import Batch, Forward, Losses
from corm_jax.losses.views import WITHOUT_MASK
from corm_jax.masks.resample import area_average


def cfce(forward: Forward, batch: Batch, key: jax.Array, *, without_mask: str) -> Losses:
    """Cross entropy in which what lies outside the core can only raise the loss.

    With CAM_c the class activation map of class c, whose sum over places is its logit, and the
    contrastive CAMs D_c = CAM_y - CAM_c of the class y:

        loss = log sum_c exp(-sum(m * D_c) + sum((1 - m) * |D_c|))

    Cross entropy is the same without |.|. The loss of an image with a core mask all ones is its
    cross entropy; that of one with an empty core mask is at least log C. The CAMs are of the layer
    that a head without bias sees the mean of, on the image as it is; m is averaged over the cells
    of their grid.

    Read from the source: contrastive CAMs as differences of CAMs between classes, the head without
    bias, the absolute value outside the core. Project choices:
      - Soft targets t: loss = log sum_c exp(core_c + outside_c) - sum_c t_c core_c with core_c =
        sum(m * CAM_c), outside_c = sum((1 - m) * |D_c|), y the class of the largest target. It is
        the same for hard targets.
      - What is unknown (mask_valid 0) counts as in cross entropy: m is 1 - non_core, and an image
        without mask has its cross entropy.
    The source also removes the last stage's norms, ReLU and stride; here the model stays as it is.

    Args:
      forward: see `corm_jax.losses.terms`; the model returns `class_maps` (see
        `corm_jax.models.head`).
      batch: see `corm_jax.losses.terms`.
      key: unused.
      without_mask: "clean" or "zero"; see `corm_jax.losses.noisy.noisy_cross_entropy`.

    Raises:
      UserError: if the model has no `class_maps`.

    Source: "Improving Feature Alignment in ConvNets Using ContrastiveCAMs and Core-Focused
    Cross-Entropy", openreview.net/forum?id=BDNctVKwuD.
    """
    del key
    logits, intermediates = forward(batch["image"])
    if "class_maps" not in intermediates:
        raise UserError(
            "cfce needs a model whose head has no bias and sees the mean of maps; set "
            "config.model.head_bias=False"
        )
    cams, target = intermediates["class_maps"], batch["target"]
    non_core = area_average(batch["non_core"], *cams.shape[1:3])
    own = jnp.take_along_axis(cams, target.argmax(axis=-1)[:, None, None, None], axis=-1)
    core = logits - (non_core * cams).sum(axis=(1, 2))
    outside = (non_core * jnp.abs(own - cams)).sum(axis=(1, 2))
    losses = optax.softmax_cross_entropy(core + outside, target) + (target * outside).sum(axis=-1)
    return lookup(WITHOUT_MASK, without_mask, "without_mask")(losses, batch["has_mask"]), {}

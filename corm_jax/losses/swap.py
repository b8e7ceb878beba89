"""Cross entropy on images before another image's background."""

import jax
import jax.numpy as jnp
import optax

from corm_jax.corruptions import swap
from corm_jax.errors import lookup
from corm_jax.losses.types import Batch, Forward, Losses
from corm_jax.losses.views import WITHOUT_MASK, chosen


def background_swap(
    forward: Forward,
    batch: Batch,
    key: jax.Array,
    *,
    probability: float,
    probability_per: str,
    without_mask: str,
) -> Losses:
    """Cross entropy on images before another image's background; the target stays.

    The view is x + (1 - m) * (b - x), where b is the background of another image of the batch, its
    core filled by its background's mean colour (`corm_jax.corruptions.swap`). Backgrounds are
    those of images with a mask; an image without, or the only one with a mask, stays as it is.
    Losses of a batch's images are therefore not independent. Padding (weight 0) lends no
    background.

    Args:
      forward: see `corm_jax.losses.terms`.
      batch: see `corm_jax.losses.terms`.
      key: PRNG key.
      probability: of a swap, in [0, 1].
      probability_per: "example" decides for each image, "batch" once for all.
      without_mask: "clean" or "zero"; see `corm_jax.losses.noisy.noisy_cross_entropy`.

    Source: CutMix (Yun et al. 2019, arXiv:1905.04899) along the mask, with the core's label alone,
    as the Backgrounds Challenge's mixed-rand set (Xiao et al. 2020, arXiv:2006.09994).
    """
    swap_key, choice_key = jax.random.split(key)
    region = batch["non_core"] * (batch["weight"] > 0).astype(jnp.float32)[:, None, None, None]
    views = swap(batch["image"], region, swap_key)
    images = chosen(
        views,
        batch["image"],
        choice_key,
        probability=probability,
        probability_per=probability_per,
    )
    losses = optax.softmax_cross_entropy(forward(images)[0], batch["target"])
    return lookup(WITHOUT_MASK, without_mask, "without_mask")(losses, batch["has_mask"]), {}

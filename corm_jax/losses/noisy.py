"""Cross entropy on corrupted images."""

import jax
import optax

from corm_jax.errors import lookup
from corm_jax.losses.types import Batch, Forward, Losses
from corm_jax.losses.views import WITHOUT_MASK, corrupted_view


def noisy_view(batch: Batch, key: jax.Array, *, sigma: float, probability: float) -> jax.Array:
    """Returns images with Gaussian noise outside the core: clip(x + sigma * n * (1 - m), 0, 1).

    The view of `noisy_cross_entropy` with gaussian_noise of fixed sigma outside the core.

    Args:
      batch: see `corm_jax.losses.terms`.
      key: PRNG key.
      sigma: standard deviation in [0, 1] pixel units.
      probability: of each image to be corrupted, in [0, 1]; the others stay as they are.
    """
    return corrupted_view(
        batch,
        key,
        corruption="gaussian_noise",
        sigma=sigma,
        sigma_high=0.0,
        patch=1,
        region="non_core",
        probability=probability,
        probability_per="example",
    )


def noisy_cross_entropy(
    forward: Forward,
    batch: Batch,
    key: jax.Array,
    *,
    corruption: str,
    sigma: float,
    sigma_high: float,
    patch: int,
    region: str,
    probability: float,
    probability_per: str,
    without_mask: str,
) -> Losses:
    """Cross entropy on corrupted images: -sum_c target_c log softmax(f(view))_c.

    Args:
      forward: see `corm_jax.losses.terms`.
      batch: see `corm_jax.losses.terms`.
      key: PRNG key.
      corruption: see `corm_jax.losses.views.corrupted_view`, as for all that follow.
      sigma: strength.
      sigma_high: end of the range that sigma is drawn from; 0 for sigma itself.
      patch: side in pixels of patch_shuffle's patches.
      region: where.
      probability: of being corrupted, in [0, 1].
      probability_per: "example" or "batch".
      without_mask: the loss of an image without mask: "clean" takes its cross entropy (for use
        instead of `cross_entropy`), "zero" nothing (for use beside it), so that in both an image
        without mask contributes exactly its cross entropy to the objective. With the region
        "whole", which needs no masks, "clean" is the choice.

    Source: with Gaussian noise outside the core, Hard ImageNet (Moayeri et al. 2022) with
    probability 1/2, MLX (Heo et al. 2023) with 1.
    """
    images = corrupted_view(
        batch,
        key,
        corruption=corruption,
        sigma=sigma,
        sigma_high=sigma_high,
        patch=patch,
        region=region,
        probability=probability,
        probability_per=probability_per,
    )
    losses = optax.softmax_cross_entropy(forward(images)[0], batch["target"])
    return lookup(WITHOUT_MASK, without_mask, "without_mask")(losses, batch["has_mask"]), {}

"""Consistency of the predictions on clean and on corrupted images."""

import jax
import jax.numpy as jnp

from corm_jax.errors import lookup
from corm_jax.losses.types import Batch, Forward, Losses
from corm_jax.losses.views import REGIONS, corrupted_view


def consistency(
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
    clean_gradient: bool,
) -> Losses:
    """KL divergence of the prediction on a corrupted image from that on the image as it is.

    KL(p || q) = sum_c p_c (log p_c - log q_c), p = softmax(f(x)), q = softmax(f(view)), natural
    logarithm. 0 for an image whose region is empty, such as one without mask.

    Args:
      forward: see `corm_jax.losses.terms`.
      batch: see `corm_jax.losses.terms`; targets are unused.
      key: PRNG key.
      corruption: see `corm_jax.losses.views.corrupted_view`, as for all that follow.
      sigma: strength.
      sigma_high: end of the range that sigma is drawn from; 0 for sigma itself.
      patch: side in pixels of patch_shuffle's patches.
      region: where.
      probability: of being corrupted, in [0, 1].
      probability_per: "example" or "batch".
      clean_gradient: whether gradients also flow through p; without, p is a fixed target.

    Source: UDA (Xie et al. 2020, arXiv:1904.12848), where p is fixed; outside the core instead of
    by data augmentation.
    """
    view = corrupted_view(
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
    clean = jax.nn.log_softmax(forward(batch["image"])[0])
    if not clean_gradient:
        clean = jax.lax.stop_gradient(clean)
    corrupted = jax.nn.log_softmax(forward(view)[0])
    divergence = (jnp.exp(clean) * (clean - corrupted)).sum(axis=-1)
    where = lookup(REGIONS, region, "region")(batch)
    return divergence * (where > 0).any(axis=(1, 2, 3)).astype(jnp.float32), {}

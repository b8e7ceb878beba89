"""Cross entropy on corrupted images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from corm_jax.corruptions import gaussian_noise
from corm_jax.errors import lookup
from corm_jax.losses.types import Batch, Forward, Losses


def noisy_view(batch: Batch, key: jax.Array, *, sigma: float, probability: float) -> jax.Array:
    """Returns images with Gaussian noise outside the core: clip(x + sigma * n * (1 - m), 0, 1).

    Args:
      batch: see `corm_jax.losses.terms`.
      key: PRNG key.
      sigma: standard deviation in [0, 1] pixel units.
      probability: of each image to be corrupted, in [0, 1]; the others stay as they are.
    """
    noise_key, choice_key = jax.random.split(key)
    noisy = gaussian_noise(batch["image"], batch["non_core"], noise_key, sigma=sigma)
    if probability >= 1:
        return noisy
    chosen = jax.random.bernoulli(choice_key, probability, (len(noisy), 1, 1, 1))
    return jnp.where(chosen, noisy, batch["image"])


def noisy_cross_entropy(
    forward: Forward,
    batch: Batch,
    key: jax.Array,
    *,
    sigma: float,
    probability: float,
    without_mask: str,
) -> Losses:
    """Cross entropy on images with Gaussian noise outside the core.

    Args:
      forward: see `corm_jax.losses.terms`.
      batch: see `corm_jax.losses.terms`.
      key: PRNG key.
      sigma: standard deviation of the noise in [0, 1] pixel units.
      probability: of each image to be corrupted, in [0, 1].
      without_mask: the loss of an image without mask: "clean" takes its cross entropy (for use
        instead of `cross_entropy`), "zero" nothing (for use beside it), so that in both an image
        without mask contributes exactly its cross entropy to the objective.

    Source: Hard ImageNet (Moayeri et al. 2022) with probability 1/2, MLX (Heo et al. 2023) with 1.
    """
    images = noisy_view(batch, key, sigma=sigma, probability=probability)
    losses = optax.softmax_cross_entropy(forward(images)[0], batch["target"])
    return lookup(WITHOUT_MASK, without_mask, "without_mask")(losses, batch["has_mask"]), {}


# What images without mask (has_mask 0) lose in `noisy_cross_entropy`.
WITHOUT_MASK: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "clean": lambda losses, has_mask: losses,
    "zero": lambda losses, has_mask: losses * has_mask,
}

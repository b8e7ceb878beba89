"""Corruptions of images: pure functions of (image, region, key), the same in training and tests.

There is one Gaussian noise in this code base: `gaussian_noise`.
"""

import jax
import jax.numpy as jnp


def gaussian_noise(
    images: jax.Array, region: jax.Array, key: jax.Array, *, sigma: float
) -> jax.Array:
    """Adds Gaussian noise in a region: clip(x + sigma * n * region, 0, 1), n ~ N(0, 1).

    Args:
      images: float32 [..., H, W, C] in [0, 1].
      region: float32 [..., H, W, 1] in [0, 1]; scales the noise, 0 keeps the pixel.
      key: PRNG key.
      sigma: standard deviation in [0, 1] pixel units.

    Returns:
      Corrupted images, float32 [..., H, W, C] in [0, 1].

    Source: Singla, Moayeri and Feizi 2022 (arXiv:2203.15566): noise before normalisation.
    """
    noise = jax.random.normal(key, images.shape, images.dtype)
    return jnp.clip(images + sigma * noise * region, 0.0, 1.0)

"""Corruptions of images: pure functions of (images, region, key), the same in training and tests.

A corruption changes images where `region` is, and draws on their pixels there alone: nothing that
lies outside the region shows in a corrupted image but at its own place. Where the region is soft,
the corrupted pixel is blended in by it; where it is 0, the pixel stays exactly as it is.

There is one Gaussian noise in this code base: `gaussian_noise`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from corm_jax.errors import UserError

GREY = 0.5


def gaussian_noise(
    images: jax.Array,
    region: jax.Array,
    key: jax.Array,
    *,
    sigma: float | jax.Array,
    clip: bool = True,
) -> jax.Array:
    """Adds Gaussian noise in a region: clip(x + sigma * n * region, 0, 1), n ~ N(0, 1).

    Args:
      images: float32 [..., H, W, C] in [0, 1].
      region: float32 [..., H, W, 1] in [0, 1]; scales the noise, 0 keeps the pixel.
      key: PRNG key.
      sigma: standard deviation in [0, 1] pixel units; a float, float32 [C], or
        float32 [..., 1, 1, 1].
      clip: False leaves the pixels wherever the noise takes them.

    Returns:
      Corrupted images, float32 [..., H, W, C] in [0, 1] if clipped.

    Source: Singla, Moayeri and Feizi 2022 (arXiv:2203.15566): noise before normalisation.
    """
    noise = jax.random.normal(key, images.shape, images.dtype)
    noisy = images + sigma * noise * region
    return jnp.clip(noisy, 0.0, 1.0) if clip else noisy


def gaussian_noise_l2(
    images: jax.Array, region: jax.Array, key: jax.Array, *, radius: float | jax.Array
) -> jax.Array:
    """Adds Gaussian noise of one L2 norm in a region: clip(x + radius * d / |d|, 0, 1).

    d is the noise of `gaussian_noise` at sigma = 1, and |d| its norm over the whole image, before
    clipping. An empty region keeps the image.

    Args:
      images: float32 [..., H, W, C] in [0, 1].
      region: float32 [..., H, W, 1] in [0, 1].
      key: PRNG key.
      radius: the norm, in [0, 1] pixel units.

    Source: RIVAL10 (Moayeri et al. 2022, arXiv:2201.10766).
    """
    noise = jax.random.normal(key, images.shape, images.dtype) * region
    norm = jnp.sqrt(jnp.square(noise).sum(axis=(-3, -2, -1), keepdims=True))
    return jnp.clip(images + radius * noise / _at_least_tiny(norm), 0.0, 1.0)


def grey(images: jax.Array, region: jax.Array) -> jax.Array:
    """Puts mid-grey (0.5) in a region: x + region * (0.5 - x).

    Args:
      images: float32 [..., H, W, C] in [0, 1].
      region: float32 [..., H, W, 1] in [0, 1].
    """
    return _blend(images, GREY, region)


def mean_colour(images: jax.Array, region: jax.Array) -> jax.Array:
    """Puts the mean colour of an image's own region in that region.

    The mean is over the region, not over the image: the core's colours do not enter it.

    Args:
      images: float32 [..., H, W, C] in [0, 1].
      region: float32 [..., H, W, 1] in [0, 1]; weighs the mean as well.
    """
    return _blend(images, region_mean(images, region), region)


def region_mean(images: jax.Array, region: jax.Array) -> jax.Array:
    """Returns the mean colour of each image's region, float32 [..., 1, 1, C]; 0 if it is empty."""
    total = (images * region).sum(axis=(-3, -2), keepdims=True)
    return total / _at_least_tiny(region.sum(axis=(-3, -2), keepdims=True))


def blur(images: jax.Array, region: jax.Array, *, sigma: float | jax.Array) -> jax.Array:
    """Blurs a region by a Gaussian that sees the region alone (normalised convolution).

    blurred = G(x * region) / G(region): the core's pixels do not leak into their surroundings, and
    neither do the image's edges. G is two matrix products an image, exact at any sigma.

    Args:
      images: float32 [B, H, W, C] in [0, 1].
      region: float32 [B, H, W, 1] in [0, 1].
      sigma: standard deviation of the Gaussian as a share of the image's height; a float, or
        float32 [B, 1, 1, 1].

    Source of the normalisation: Knutsson and Westin 1993, normalized convolution.
    """
    size, height, width, _ = images.shape
    pixels = jnp.broadcast_to(jnp.reshape(jnp.asarray(sigma, images.dtype), (-1,)), (size,))
    pixels = jnp.maximum(pixels * height, 1e-3)  # a standard deviation of 0 keeps every pixel
    rows, columns = (_gaussian_weights(pixels, length) for length in (height, width))

    def smooth(values: jax.Array) -> jax.Array:
        return jnp.einsum(
            *("byh,bhwc,bxw->byxc", rows, values, columns), precision=jax.lax.Precision.HIGHEST
        )

    return _blend(images, smooth(images * region) / _at_least_tiny(smooth(region)), region)


def _gaussian_weights(sigma: jax.Array, length: int) -> jax.Array:
    """Returns exp(-(i - j)^2 / 2 sigma^2), float32 [B, length, length]; sigma [B] in pixels."""
    positions = jnp.arange(length, dtype=jnp.float32)
    distances = positions[:, None] - positions[None, :]
    return jnp.exp(-0.5 * jnp.square(distances[None] / sigma[:, None, None]))


def patch_shuffle(images: jax.Array, region: jax.Array, key: jax.Array, *, patch: int) -> jax.Array:
    """Permutes the patches of a region: its local texture stays, its layout goes.

    Patches that lie in the region for more than half move among each other; the others stay. What
    a moved patch holds of the outside is replaced by the region's mean colour beforehand.

    Args:
      images: float32 [B, H, W, C] in [0, 1].
      region: float32 [B, H, W, 1] in [0, 1].
      key: PRNG key.
      patch: side of the patches in pixels; divides H and W.

    Raises:
      UserError: if the images are no multiple of the patch.
    """
    size, height, width, channels = images.shape
    if height % patch or width % patch:
        raise UserError(f"patch={patch} does not divide the images' size {height} x {width} pixels")

    def split(values: jax.Array) -> jax.Array:
        """[B, H, W, c] -> [B, patches, patch, patch, c]."""
        grid = values.reshape(size, height // patch, patch, width // patch, patch, -1)
        return grid.swapaxes(2, 3).reshape(size, -1, patch, patch, values.shape[-1])

    moving = split(region).mean(axis=(2, 3, 4)) > 0.5
    sources = jax.vmap(random_permutation)(jax.random.split(key, size), moving)
    patches = split(_blend(images, region_mean(images, region), 1.0 - region))
    shuffled = jnp.take_along_axis(patches, sources[:, :, None, None, None], axis=1)
    grid = shuffled.reshape(size, height // patch, width // patch, patch, patch, channels)
    return _blend(images, grid.swapaxes(2, 3).reshape(images.shape), region)


def swap(images: jax.Array, region: jax.Array, key: jax.Array) -> jax.Array:
    """Puts another image's region behind what an image keeps: x + region * (other - x).

    The others are the images' next ones in a random cycle through all images whose region is not
    empty: nobody gets its own while there are two of them; an image alone keeps its own. Where the
    other image's own outside would show (its core, or pixels that its mask says nothing about),
    its region's mean colour is put.

    Args:
      images: float32 [B, H, W, C] in [0, 1].
      region: float32 [B, H, W, 1] in [0, 1].
      key: PRNG key.

    Source: CutMix (Yun et al. 2019) along masks, as the Backgrounds Challenge's mixed-rand images
    (Xiao et al. 2020); the mean colour is a project choice, where those take a tile.
    """
    partners = random_partners(key, (region > 0).any(axis=(1, 2, 3)))
    alone = partners == jnp.arange(len(images))
    swapped = put_region(images, region, images[partners], region[partners])
    return jnp.where(alone[:, None, None, None], images, swapped)


def put_region(
    images: jax.Array, region: jax.Array, others: jax.Array, others_region: jax.Array
) -> jax.Array:
    """Puts other images in a region: x + region * (filled - x).

    `filled` is the other image with its own region's mean colour wherever it is outside its region
    (its core, or pixels that its mask says nothing about): none of that shows.

    Args:
      images: float32 [B, H, W, C] in [0, 1].
      region: float32 [B, H, W, 1] in [0, 1].
      others: float32 [B, H, W, C], one for each image.
      others_region: float32 [B, H, W, 1], the region that each of them gives.
    """
    filled = _blend(others, region_mean(others, others_region), 1.0 - others_region)
    return _blend(images, filled, region)


def random_permutation(key: jax.Array, moving: jax.Array) -> jax.Array:
    """Returns int32 [N], a random permutation of the places where `moving` bool [N]; others stay.

    Each permutation of them is equally likely.
    """
    places, order = jnp.argsort(~moving), _random_order(key, moving)
    return jnp.zeros_like(order).at[places].set(order)


def random_partners(key: jax.Array, eligible: jax.Array) -> jax.Array:
    """Returns int32 [B], each eligible image's partner: the next in a random cycle through them.

    An image that is not eligible (bool [B]), or the only one, is its own partner.
    """
    order, number = _random_order(key, eligible), eligible.sum()
    index = jnp.arange(len(eligible))
    following = jnp.where(index < number, (index + 1) % jnp.maximum(number, 1), index)
    return jnp.zeros_like(order).at[order].set(order[following])


def _random_order(key: jax.Array, first: jax.Array) -> jax.Array:
    """Returns indices int32 [N]: those where `first` in random order, then the others in order."""
    number = jnp.arange(len(first), dtype=jnp.float32)
    return jnp.argsort(jnp.where(first, jax.random.uniform(key, first.shape), 1.0 + number))


def _blend(images: jax.Array, others: jax.Array | float, region: jax.Array) -> jax.Array:
    return images + region * (others - images)


def _at_least_tiny(values: jax.Array) -> jax.Array:
    return jnp.maximum(values, jnp.finfo(values.dtype).tiny)


# name -> function of (images [B, H, W, 3], region [B, H, W, 1], key, sigma [B, 1, 1, 1], patch).
CORRUPTIONS: dict[str, Callable[..., jax.Array]] = {
    "gaussian_noise": lambda x, region, key, sigma, patch: gaussian_noise(
        x, region, key, sigma=sigma
    ),
    "grey": lambda x, region, key, sigma, patch: grey(x, region),
    "mean_colour": lambda x, region, key, sigma, patch: mean_colour(x, region),
    "blur": lambda x, region, key, sigma, patch: blur(x, region, sigma=sigma),
    "patch_shuffle": lambda x, region, key, sigma, patch: patch_shuffle(
        x, region, key, patch=patch
    ),
    "swap": lambda x, region, key, sigma, patch: swap(x, region, key),
}

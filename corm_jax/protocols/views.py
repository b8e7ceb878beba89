"""What the evaluation protocols show a model: views that depend on seed and image alone."""

from functools import partial

import jax
import jax.numpy as jnp

from corm_jax.corruptions import blur, gaussian_noise, grey, put_region
from corm_jax.losses.types import Batch
from corm_jax.masks.morphology import dilate

# The definition dilates 15 times at 224 x 224 pixels; at other sizes the reach in proportion to
# the image stays the same (project choice).
DILATIONS = 15
DILATION_IMAGE_SIZE = 224
BLUR = 1 / 16  # standard deviation of a blurred background over the image's height


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


def noisy(
    batch: Batch,
    region: jax.Array,
    *,
    seed: int,
    trial: jax.Array,
    sigma: float | jax.Array,
    clip: bool = True,
) -> jax.Array:
    """Returns a batch's images with noise in a region, float32 [B, H, W, 3].

    Args:
      batch: an expanded batch.
      region: float32 [B, H, W, 1] in [0, 1].
      seed: of the evaluation's noise.
      trial: int32 scalar.
      sigma: standard deviation of the noise in [0, 1] pixel units, float or float32 [3].
      clip: whether to clip to [0, 1].
    """
    noise = partial(gaussian_noise, sigma=sigma, clip=clip)
    return jax.vmap(noise)(batch["image"], region, trial_keys(seed, batch["id"], trial))


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
    shown = partial(noisy, batch, seed=seed, trial=trial, sigma=sigma)
    return shown(batch["mask_valid"] * (1.0 - region)), shown(batch["mask_valid"] * region)


def box(region: jax.Array) -> jax.Array:
    """Returns the bounding boxes of where regions are at least 0.5.

    Args:
      region: float32 [B, H, W, 1] in [0, 1]; one that is nowhere so large has an empty box.

    Returns:
      float32 [B, H, W, 1] of 0 and 1.
    """
    inside = region[..., 0] >= 0.5

    def span(axis: int) -> jax.Array:
        """Returns bool [B, n]: from the first to the last row, or column, that is inside."""
        occupied = inside.any(axis=axis)
        started = jnp.cumsum(occupied, axis=1) > 0
        not_ended = jnp.cumsum(occupied[:, ::-1], axis=1)[:, ::-1] > 0
        return started & not_ended

    return (span(2)[:, :, None] & span(1)[:, None, :]).astype(region.dtype)[..., None]


def tile_over(images: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tiles a box over with the largest strip of the image beside it.

    The strips are all rows above the box, all below it, all columns to its left, and to its right;
    of equal ones the first in this order.

    Args:
      images: float32 [B, H, W, 3].
      boxes: float32 [B, H, W, 1], from `box`.

    Returns:
      (images float32 [B, H, W, 3]; tiled float32 [B]: 0 where the box is empty or leaves no strip,
      and the image is as it is).

    Source: the only-BG-T images of the Backgrounds Challenge (Xiao et al. 2020, arXiv:2006.09994).
    """
    _, height, width, _ = images.shape
    rows, columns = boxes[..., 0].max(axis=2), boxes[..., 0].max(axis=1)

    def ends(line: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the first place [B] inside, and the one behind the last."""
        return line.argmax(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1)

    (top, bottom), (left, right) = ends(rows), ends(columns)
    lengths = jnp.stack([top, height - bottom, left, width - right], axis=1)
    areas = lengths * jnp.asarray([width, width, height, height])
    chosen = areas.argmax(axis=1)
    length = jnp.maximum(jnp.take_along_axis(lengths, chosen[:, None], axis=1), 1)
    # Where the strip starts along its short side, and from where tiles are counted.
    starts = jnp.stack([jnp.zeros_like(top), bottom, jnp.zeros_like(left), right], axis=1)
    start = jnp.take_along_axis(starts, chosen[:, None], axis=1)
    horizontal = (chosen < 2)[:, None]

    def places(size: int, first: jax.Array, moves: jax.Array) -> jax.Array:
        own = jnp.arange(size)[None]
        return jnp.where(moves, start + (own - first[:, None]) % length, own)

    i, j = places(height, top, horizontal), places(width, left, ~horizontal)
    tiles = jax.vmap(lambda image, i, j: image[i][:, j])(images, i, j)
    tiled = (rows.max(axis=1) > 0) & (areas.max(axis=1) > 0)
    return jnp.where((boxes > 0) & tiled[:, None, None, None], tiles, images), tiled.astype(
        images.dtype
    )


def ablated(
    batch: Batch, partner: Batch, region: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the views of the `ablations` protocol.

    Args:
      batch: an expanded batch.
      partner: an expanded batch of the images that lend their backgrounds, one for each.
      region: float32 [B, H, W, 1], the core region of `batch`.

    Returns:
      (the views by the names of their metrics, each float32 [B, H, W, 3] in [0, 1]; whether each
      shows what it is named for, float32 [B]: 0 of `swapped_background` where the partner is of the
      same class, or has no core mask or no background; of `tiled_object` where the object's box
      leaves no strip: there the view is the image as it is). Pixels that the mask says nothing
      about keep their values.
    """
    images, valid = batch["image"], batch["mask_valid"]
    background, core = valid * (1.0 - region), valid * region
    lent, has_core = core_region(partner["core_mask"])
    lent = partner["mask_valid"] * (1.0 - lent)
    can = (partner["label"] != batch["label"]) & (has_core > 0) & (lent > 0).any(axis=(1, 2, 3))
    behind = put_region(images, background, partner["image"], lent)
    boxes = box(core)
    tiled, is_tiled = tile_over(images, boxes)
    views = {
        "swapped_background": jnp.where(can[:, None, None, None], behind, images),
        "grey_background": grey(images, background),
        "blurred_background": blur(images, background, sigma=BLUR),
        "grey_object": grey(images, core),
        "grey_box": grey(images, valid * boxes),
        "tiled_object": images + valid * (tiled - images),
    }
    shown = {name: jnp.ones(len(images), images.dtype) for name in views}
    shown |= {"swapped_background": can.astype(images.dtype), "tiled_object": is_tiled}
    return views, shown

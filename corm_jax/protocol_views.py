"""What the evaluation protocols show a model: views that depend on seed and image alone."""

import jax
import jax.numpy as jnp

from corm_jax.corruptions import gaussian_noise, grey, put_region
from corm_jax.losses.types import Batch
from corm_jax.masks.morphology import dilate

# The definition dilates 15 times at 224 x 224 pixels; at other sizes the reach in proportion to
# the image stays the same (project choice).
DILATIONS = 15
DILATION_IMAGE_SIZE = 224


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
    keys = trial_keys(seed, batch["id"], trial)

    def noisy(region: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, r, k: gaussian_noise(x, r, k, sigma=sigma))(
            batch["image"], region, keys
        )

    valid = batch["mask_valid"]
    return noisy(valid * (1.0 - region)), noisy(valid * region)


def ablated(batch: Batch, partner: Batch, region: jax.Array) -> tuple[dict[str, jax.Array], Batch]:
    """Returns the views of the `ablations` protocol.

    Args:
      batch: an expanded batch.
      partner: an expanded batch of the images that lend their backgrounds, one for each.
      region: float32 [B, H, W, 1], the core region of `batch`.

    Returns:
      (the views by the names of their metrics, each float32 [B, H, W, 3] in [0, 1]; swapped
      float32 [B]: 0 where `swapped_background` is the image as it is, because its partner is of
      the same class, or has no core mask or no background). Pixels that the mask says nothing
      about keep their values.
    """
    images, valid = batch["image"], batch["mask_valid"]
    background = valid * (1.0 - region)
    lent, has_core = core_region(partner["core_mask"])
    lent = partner["mask_valid"] * (1.0 - lent)
    can = (partner["label"] != batch["label"]) & (has_core > 0) & (lent > 0).any(axis=(1, 2, 3))
    behind = put_region(images, background, partner["image"], lent)
    views = {
        "swapped_background": jnp.where(can[:, None, None, None], behind, images),
        "grey_background": grey(images, background),
        "grey_object": grey(images, valid * region),
    }
    return views, can.astype(jnp.float32)

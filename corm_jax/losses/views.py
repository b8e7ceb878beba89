"""Corrupted views of a batch, which terms of several kinds compute their losses on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from corm_jax.corruptions import CORRUPTIONS
from corm_jax.errors import lookup
from corm_jax.losses.types import Batch

# Where a view is corrupted or attacked: float32 [B, H, W, 1] in [0, 1].
REGIONS: dict[str, Callable[[Batch], jax.Array]] = {
    "non_core": lambda batch: batch["non_core"],
    "core": lambda batch: batch["core_mask"],
    # Masks unused: images without one are corrupted as well.
    "whole": lambda batch: jnp.ones_like(batch["non_core"]),
}

# What an image without mask (has_mask 0) loses in a cross entropy on a view.
WITHOUT_MASK: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "clean": lambda losses, has_mask: losses,
    "zero": lambda losses, has_mask: losses * has_mask,
}

# Shape of the draws that decide whether an image is corrupted, for B images.
PROBABILITY_PER: dict[str, Callable[[int], tuple[int, ...]]] = {
    "example": lambda size: (size, 1, 1, 1),
    "batch": lambda size: (1, 1, 1, 1),
}

# The choices of the parameters of `corrupted_view`.
CORRUPTED_VIEW = {
    "corruption": CORRUPTIONS,
    "region": REGIONS,
    "probability_per": PROBABILITY_PER,
}


def corrupted_view(
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
) -> jax.Array:
    """Returns images corrupted in a region, or as they are.

    Args:
      batch: see `corm_jax.losses.terms`.
      key: PRNG key.
      corruption: "gaussian_noise", "grey", "mean_colour", "blur", "patch_shuffle" or "swap": a key
        of `corm_jax.corruptions.CORRUPTIONS`, which describes them.
      sigma: standard deviation: of gaussian_noise in [0, 1] pixel units, of blur as a share of the
        image's height. The others do not use it.
      sigma_high: drawn for each image uniformly between sigma and this where it is larger; 0 for
        sigma itself.
      patch: side of patch_shuffle's patches in pixels. The others do not use it.
      region: "non_core", "core" or "whole" (the whole of every image, masks unused).
      probability: of being corrupted, in [0, 1].
      probability_per: "example" decides for each image, "batch" once for all.

    Returns:
      float32 [B, H, W, 3] in [0, 1]; the same array for equal arguments where the batch holds
      `views`, so that terms share a pass of it.
    """
    images = batch["image"]
    where = lookup(REGIONS, region, "region")(batch)
    patch = patch if corruption == "patch_shuffle" else 1  # equal where it is not used
    parameters = (corruption, sigma, sigma_high, patch, probability, probability_per)
    name = (id(images), id(where), id(key), *parameters)
    views = batch.get("views", {})
    if name not in views:
        view = _corrupted(images, where, key, *parameters)
        views[name] = (view, images, where, key)  # held, so that no other array takes their ids
    return views[name][0]


def _corrupted(
    images: jax.Array,
    where: jax.Array,
    key: jax.Array,
    corruption: str,
    sigma: float,
    sigma_high: float,
    patch: int,
    probability: float,
    probability_per: str,
) -> jax.Array:
    corrupt_key, choice_key, sigma_key = jax.random.split(key, 3)
    sigmas = jnp.full((len(images), 1, 1, 1), sigma, jnp.float32)
    if sigma_high > sigma:
        sigmas = jax.random.uniform(sigma_key, sigmas.shape, minval=sigma, maxval=sigma_high)
    corrupt = lookup(CORRUPTIONS, corruption, "corruption")
    views = corrupt(images, where, corrupt_key, sigmas, patch)
    return chosen(
        *(views, images, choice_key), probability=probability, probability_per=probability_per
    )


def chosen(
    views: jax.Array,
    images: jax.Array,
    key: jax.Array,
    *,
    probability: float,
    probability_per: str,
) -> jax.Array:
    """Returns each view with a probability, else the image as it is; see `corrupted_view`."""
    if probability >= 1:
        return views
    shape = lookup(PROBABILITY_PER, probability_per, "probability_per")(len(images))
    return jnp.where(jax.random.bernoulli(key, probability, shape), views, images)

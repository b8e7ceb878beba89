"""The input normaliser: part of each model, so that noise in [0, 1] means the same for all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Statistics(NamedTuple):
    """Per-channel mean and standard deviation of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Of ImageNet's training images (as in torchvision and timm).
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Maps [0, 1] to [-1, 1], as timm's `augreg` vision transformers do.
INCEPTION = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Of the images that OpenAI's CLIP was trained on (as in open_clip and timm).
CLIP = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def normalize(images: jax.Array, statistics: Statistics) -> jax.Array:
    """Returns (images - mean) / std, float32, for images [..., 3] in [0, 1]."""
    mean = jnp.asarray(statistics.mean, jnp.float32)
    std = jnp.asarray(statistics.std, jnp.float32)
    return (images.astype(jnp.float32) - mean) / std

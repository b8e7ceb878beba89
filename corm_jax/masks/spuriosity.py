"""Spuriosity: how strongly the spurious features of its class show in an image.

Ranking the images of a class by it puts common images (the otter in water) at the top and rare ones
(the otter on land) at the bottom; the spurious gap of a model is how much better it does at the
top. Source: Moayeri et al., Spuriosity Rankings, NeurIPS 2023 (arXiv:2212.02648).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from corm_jax.errors import UserError


@dataclass(frozen=True)
class Ranking:
    """Images of a split, ranked within their classes.

    Attributes:
      scores: float64 [N], the spuriosity of each image; NaN where its class has no ranking.
      order: class -> int64 [n], its images, the most spurious first.
    """

    scores: np.ndarray
    order: dict[int, np.ndarray]


def spuriosity(activations: np.ndarray) -> np.ndarray:
    """Scores the images of one class.

    Each feature is standardised over these images, mean 0 and standard deviation 1 (that of the
    population: divided by n), and an image's score is the mean over the features, as in the paper.
    A feature that is equal on all images counts 0 (project choice).

    Args:
      activations: float [n, F], of the class's F spurious features on its n images, F > 0.

    Returns:
      float64 [n].
    """
    values = activations.astype(np.float64)
    centered = values - values.mean(axis=0)
    deviation = values.std(axis=0)
    varies = np.ptp(values, axis=0) > 0  # rounding may leave equal values a deviation
    return (centered / np.where(varies, deviation, 1.0) * varies).mean(axis=1)


def rank(
    activations: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    spurious: Mapping[int, Sequence[int]],
) -> Ranking:
    """Ranks the images of each class that has a spurious feature.

    Args:
      activations: int64 [n], indices of images -> float [n, C], their activations: a store's
        method, or the `__getitem__` of an array [N, C].
      labels: int [N], the class of each image; an image of a class without features is not ranked.
      spurious: class -> channels of its spurious features.

    Returns:
      the ranking; of images of equal scores the one that comes first in the split ranks first.
      Classes without spurious features or images are not in it.
    """
    scores = np.full(len(labels), np.nan)
    order = {}
    for index, features in spurious.items():
        images = np.flatnonzero(labels == index)
        if len(images) and len(features):
            scores[images] = spuriosity(activations(images)[:, list(features)])
            order[index] = images[np.argsort(-scores[images], kind="stable")]
    return Ranking(scores, order)


@dataclass(frozen=True)
class SpuriousGap:
    """How much better a model does on the most spurious images.

    Attributes:
      gap: top - bottom; above 0 for a model that the spurious features help.
      top: accuracy in [0, 1] on the most spurious images, mean over classes.
      bottom: accuracy on the least spurious ones.
      by_class: class -> its gap.
    """

    gap: float
    top: float
    bottom: float
    by_class: dict[int, float]


def spurious_gap(order: Mapping[int, np.ndarray], correct: np.ndarray, k: int) -> SpuriousGap:
    """Measures a model: accuracy on the top-k minus accuracy on the bottom-k images of each class.

    The paper pools the images of all classes, which is the same mean where every class has 2k
    images. A class of fewer is halved, so that no image is in both parts, and counts like the
    others; a class of one image does not count (project choices).

    Args:
      order: class -> int [n], its images, the most spurious first.
      correct: bool [N], whether the model classifies each image correctly.
      k: images at each end of a ranking.

    Raises:
      UserError: if no class has a ranking of two images, or k is below 1.
    """
    if k < 1:
        raise UserError(f"k={k}: the spurious gap needs at least one image at each end")
    ends = {}
    for index, images in order.items():
        n = min(k, len(images) // 2)
        if n:
            ends[index] = correct[images[:n]].mean(), correct[images[-n:]].mean()
    if not ends:
        raise UserError("no class has a spurious feature and two images to measure the gap on")
    top, bottom = np.mean(list(ends.values()), axis=0)
    by_class = {index: float(high - low) for index, (high, low) in ends.items()}
    return SpuriousGap(float(top - bottom), float(top), float(bottom), by_class)

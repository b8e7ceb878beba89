"""A part of a split that is set aside, such as training images to select hyperparameters by."""

import hashlib
from collections.abc import Sequence

import numpy as np

from corm_jax.data.pipeline import ImageSource, Split


class SomeImages:
    """Some images of a source; an `ImageSource`."""

    def __init__(self, images: ImageSource, indices: np.ndarray) -> None:
        """Holds the images at `indices`, int64 [n]."""
        self._images, self._indices = images, indices
        self.class_names = images.class_names
        self.file_names = images.file_names[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns (encoded image, label) of each index."""
        return self._images.read(self._indices[np.asarray(indices, np.int64)])

    def labels(self) -> np.ndarray:
        """Returns the label of every image, int32 [n]."""
        return self._images.labels()[self._indices]

    def describe(self, index: int) -> str:
        """Returns where an image is, for messages."""
        return self._images.describe(int(self._indices[index]))


def set_aside(split: Split, share: float) -> tuple[Split, Split]:
    """Sets a share of each class's images aside, the same ones every time.

    They are the first in the order of a hash of their file names: at least one of each class, and
    never all.

    Args:
      split: the images.
      share: of each class's images, in (0, 1).

    Returns:
      (the rest, what is set aside), both in the order of `split`.
    """
    hashes = np.array([hashlib.sha256(name).digest() for name in split.images.file_names])
    labels, chosen = split.images.labels(), np.zeros(len(split.images), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(len(members) - 1, max(1, round(share * len(members))))
        chosen[members[np.argsort(hashes[members])[:count]]] = True
    return _part(split, np.flatnonzero(~chosen)), _part(split, np.flatnonzero(chosen))


def _part(split: Split, indices: np.ndarray) -> Split:
    images = SomeImages(split.images, indices)
    return Split(images, split.masks, split.rows[indices], split.has_mask[indices])

"""Evaluation batches with a companion each: other images' backgrounds, or other masks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from corm_jax.data import order
from corm_jax.data.dataset import read_labels
from corm_jax.data.pipeline import Loader, Split, identity
from corm_jax.errors import UserError
from corm_jax.masks.records import MaskSource


@dataclass(frozen=True)
class PairedLoader:
    """Loads batches of an evaluation with their companions.

    Attributes:
      images: loads the images.
      companions: loads the companion of each at the same place.
      name: of the companions in a batch.
    """

    images: Loader
    companions: Loader
    name: str

    def batches(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yields batches as `Loader.batches` does, with another such batch under `name`."""
        pairs = zip(
            self.images.batches(start, stop), self.companions.batches(start, stop), strict=True
        )
        for images, companions in pairs:
            yield {**images, self.name: companions}


def pair(config: ConfigDict, loader: Loader) -> PairedLoader:
    """Pairs each image of a whole split's evaluation with one of another class, its `partner`.

    Partners are drawn among the split's images with a core mask by the image and
    `config.eval.seed`: they are the same for every model, batch size and number of hosts. An image
    without mask, or without others, is its own partner.

    Args:
      config: the run's config.
      loader: from `corm_jax.data.dataset.evaluation_loader`, of all images.
    """
    partners = partner_indices(loader.split, config.eval.seed)
    select = order.evaluation_order(partners, batch_size=config.eval.batch_size)
    return PairedLoader(loader, _like(loader, select=select), "partner")


def with_spurious(config: ConfigDict, loader: Loader) -> PairedLoader:
    """Pairs each image with itself and its spurious mask, which stands where the core mask does.

    Args:
      config: the run's config.
      loader: from `corm_jax.data.dataset.evaluation_loader`.

    Raises:
      UserError: if no image of the split has a spurious mask.
    """
    del config
    split = loader.split
    masks = SpuriousMasks(split.masks)
    has_mask = np.append(masks.has("core"), False)[split.rows]  # row -1: no record
    if not has_mask.any():
        raise UserError(
            "no image has a spurious mask, which the annotated and normalized protocols need; give "
            "mask records that hold some (--masks=DIR, such as those of Salient ImageNet), or "
            "choose protocols that take core masks alone: complement, box, rfs"
        )
    split = replace(split, masks=masks, has_mask=has_mask)
    return PairedLoader(loader, _like(loader, split=split), "spurious")


# Protocols that take batches with companions, and where these come from.
COMPANIONS: dict[str, Callable[[ConfigDict, Loader], PairedLoader]] = {
    "ablations": pair,
    "annotated": with_spurious,
    "normalized": with_spurious,
}


@dataclass(frozen=True)
class SpuriousMasks:
    """The spurious masks of records in place of their core masks; a `MaskSource`."""

    source: MaskSource

    @property
    def file_names(self) -> np.ndarray:
        """Returns the images' file names, bytes [N]."""
        return self.source.file_names

    @property
    def encoding(self) -> str:
        """Returns "grid" or "png"."""
        return self.source.encoding

    @property
    def size(self) -> tuple[int, int] | None:
        """Returns (h, w) of every mask, None where they differ."""
        return self.source.size

    @property
    def frame(self) -> dict[str, Any]:
        """Returns the masks' frame."""
        return self.source.frame

    def has(self, kind: str) -> np.ndarray:
        """Returns bool [N]: which rows have a spurious mask."""
        return self.source.has(_OTHER[kind])

    def grids(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 [len(rows), h, w]."""
        return self.source.grids(_OTHER[kind], rows)

    def png(self, kind: str, row: int) -> bytes:
        """Returns the PNG file of a row."""
        return self.source.png(_OTHER[kind], row)

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 [len(rows), 4]: the frames' boxes."""
        return self.source.boxes(rows)

    def describe(self, row: int) -> str:
        """Returns where the mask of a row is, for error messages."""
        return self.source.describe(row)


_OTHER = {"core": "spurious", "spurious": "core"}


def _like(loader: Loader, **changes: Any) -> Loader:
    # A record of bad images of its own: each loader has to come upon an image's damage itself.
    return replace(loader, skipped=dict(loader.skipped), **changes)


def partner_indices(split: Split, seed: int) -> np.ndarray:
    """Returns int64 [N], the index of each image's partner, see `pair`."""
    masked = np.flatnonzero(split.has_mask)
    labels = read_labels("validation", split.images, masked)
    ids = np.array([identity(name) for name in split.images.file_names[masked]], np.int64)
    found = np.arange(len(split.images))
    found[masked] = masked[order.partners(labels, ids, seed=seed)]
    return found

"""Evaluation batches paired with images of other classes, which lend their backgrounds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from corm_jax.data import order
from corm_jax.data.dataset import read_labels
from corm_jax.data.pipeline import Loader, Split, identity


@dataclass(frozen=True)
class PairedLoader:
    """Loads batches of an evaluation with their partners.

    Attributes:
      images: loads the images.
      partners: loads the partner of each at the same place.
    """

    images: Loader
    partners: Loader

    def batches(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yields batches as `Loader.batches` does, with another such batch as their `partner`."""
        pairs = zip(
            self.images.batches(start, stop), self.partners.batches(start, stop), strict=True
        )
        for images, partners in pairs:
            yield {**images, "partner": partners}


def pair(config: ConfigDict, loader: Loader) -> PairedLoader:
    """Pairs each image of a whole split's evaluation with one of another class.

    Partners are drawn among the split's images with a core mask by the image and
    `config.eval.seed`: they are the same for every model, batch size and number of hosts. An image
    without mask, or without others, is its own partner.

    Args:
      config: the run's config.
      loader: from `corm_jax.data.dataset.evaluation_loader`, of all images.
    """
    partners = _partners(loader.split, config.eval.seed)
    select = order.evaluation_order(partners, batch_size=config.eval.batch_size)
    # A record of bad images of its own: each loader has to come upon an image's damage itself.
    return PairedLoader(loader, replace(loader, select=select, skipped=dict(loader.skipped)))


def _partners(split: Split, seed: int) -> np.ndarray:
    """Returns int64 [N], the index of each image's partner."""
    masked = np.flatnonzero(split.has_mask)
    labels = read_labels("validation", split.images, masked)
    ids = np.array([identity(name) for name in split.images.file_names[masked]], np.int64)
    found = np.arange(len(split.images))
    found[masked] = masked[order.partners(labels, ids, seed=seed)]
    return found

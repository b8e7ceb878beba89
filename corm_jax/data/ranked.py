"""Evaluation batches that say which images are at an end of their class's ranking by spuriosity."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corm_jax.data.pipeline import Loader, identity
from corm_jax.errors import UserError

ENDS = 100  # images at each end of a class's ranking, as in the paper
COLUMNS = ("file_name", "class", "rank")


@dataclass(frozen=True)
class RankedLoader:
    """Loads batches with `end`: 1 for the most spurious images of a class, -1 for the least.

    Attributes:
      images: loads the images.
      ids: uint32 [N], of the ranked images, ascending.
      ends: float32 [N], 1, -1 or, between the ends, 0.
    """

    images: Loader
    ids: np.ndarray
    ends: np.ndarray

    def batches(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yields batches as `Loader.batches` does, with `end` float32 [b]."""
        for batch in self.images.batches(start, stop):
            place = np.minimum(np.searchsorted(self.ids, batch["id"]), len(self.ids) - 1)
            ranked = self.ids[place] == batch["id"]
            yield {**batch, "end": np.where(ranked, self.ends[place], np.float32(0))}


def rank(loader: Loader, path: Path) -> RankedLoader:
    """Marks the ends of a ranking: `ENDS` images each, or half of a class of fewer than twice that.

    Args:
      loader: from `corm_jax.data.dataset.evaluation_loader`.
      path: spuriosity.csv of `python -m corm_jax.masks spuriosity`, of the same split.

    Raises:
      UserError: if the file cannot be read, or ranks none of the split's images.
    """
    ranks: dict[str, list[tuple[int, bytes]]] = {}
    known = set(loader.split.images.file_names.tolist())
    for line, row in _rows(path):
        name = os.fsencode(row["file_name"])
        if name in known:
            try:
                ranks.setdefault(row["class"], []).append((int(row["rank"]), name))
            except ValueError as error:
                raise UserError(
                    f"{path}, line {line}: rank {row['rank']!r} is no number"
                ) from error
    found: dict[int, float] = {}
    for images in ranks.values():
        images.sort()
        size = min(ENDS, len(images) // 2)
        for place, (_, name) in enumerate(images):
            last = place >= len(images) - size
            found[identity(name)] = 1.0 if place < size else -1.0 if last else 0.0
    if not any(found.values()):
        raise UserError(
            f"{path} ranks no two images of a class of this split; rank it by python -m "
            "corm_jax.masks spuriosity WORKDIR --split=validation, or train"
        )
    ids = np.array(sorted(found), np.uint32)
    return RankedLoader(loader, ids, np.array([found[int(i)] for i in ids], np.float32))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            for row in reader:
                yield reader.line_num, {name: row[name] or "" for name in COLUMNS}
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error

"""What an importer gives: masks by the file names of their images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Row:
    """The masks of one image.

    Attributes:
      file_name: the image's file name in its data set, the key of the join.
      core: uint8 [h, w], 255 is entirely core; None if there is none.
      spurious: likewise.
    """

    file_name: str
    core: np.ndarray | None = None
    spurious: np.ndarray | None = None


class Source(Protocol):
    """Masks of one format, opened and checked as far as that needs no decoding of masks.

    Attributes:
      frame: which part of its image each mask covers; see `corm_jax.masks.records`.
      note: free text for `masks.json`: what the masks are.
      skipped: reason -> how many things of the input give no row, filled while rows are read.
    """

    frame: dict[str, Any]
    note: str
    skipped: dict[str, int]

    def __len__(self) -> int:
        """Returns the number of rows."""

    def rows(self) -> Iterator[Row]:
        """Yields the rows in a fixed order; raises UserError for what cannot be read."""

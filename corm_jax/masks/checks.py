"""What rows of mask records must fulfil: each check yields a line for every row that does not."""

import os
from collections.abc import Iterator

import numpy as np


def repeated_names(names: np.ndarray, where: str) -> Iterator[str]:
    """Yields the rows that are of one image.

    Args:
      names: bytes [N], file names.
      where: the file that they are in, for the messages.
    """
    order = np.argsort(names, kind="stable")  # of two equal names, the earlier row comes first
    ordered = names[order]
    for place in np.flatnonzero(ordered[1:] == ordered[:-1]):
        first, second = order[place], order[place + 1]
        yield (
            f"{where}: two records for image {os.fsdecode(ordered[place])!r}, "
            f"rows {first} and {second}"
        )


def boxes_outside(boxes: np.ndarray) -> Iterator[tuple[int, str]]:
    """Yields (row, what is wrong) of the boxes that are not within their images.

    Args:
      boxes: float32 [N, 4], top, left, bottom, right in [0, 1].
    """
    top, left, bottom, right = boxes.T
    fits = (top >= 0) & (top < bottom) & (bottom <= 1) & (left >= 0) & (left < right) & (right <= 1)
    for row in map(int, np.flatnonzero(~fits)):
        yield (
            row,
            f"frame {boxes[row].tolist()} lies outside its image "
            "(0 <= top < bottom <= 1, 0 <= left < right <= 1)",
        )


def unknown_kinds(kinds: np.ndarray, bits: int, where: str) -> Iterator[str]:
    """Yields the rows whose kinds have a bit beyond the lowest `bits`.

    Args:
      kinds: uint8 [N].
      bits: how many kinds there are.
      where: the file that they are in, for the messages.
    """
    for row in np.flatnonzero(kinds >> bits):
        yield f"{where}: row {row} has the unknown kinds {kinds[row]}; write the records again"


def misplaced_spans(
    spans: np.ndarray, has: np.ndarray, size: int, data: str, where: str
) -> Iterator[str]:
    """Yields the rows whose spans contradict the kinds, or go beyond the file of PNGs.

    Args:
      spans: int64 [N, 2], offset and length.
      has: bool [N], whether the kinds say that there is a mask.
      size: of the file of PNGs in bytes.
      data: the file of PNGs, for the messages.
      where: the file that the spans are in, for the messages.
    """
    offsets, lengths = spans.T
    contradicts = (offsets < 0) | (lengths < 0) | ((lengths > 0) != has)
    for row in np.flatnonzero(contradicts):
        yield f"{where} contradicts kinds.npy in row {row}; write the records again"
    # Written so that no sum can overflow.
    for row in np.flatnonzero(~contradicts & (lengths > np.maximum(size - offsets, 0))):
        yield (
            f"{data} is truncated: row {row} needs bytes {offsets[row]} to "
            f"{int(offsets[row]) + int(lengths[row])} of {size}; write the records again"
        )


def gaps_between_spans(spans: np.ndarray, size: int, where: str) -> Iterator[str]:
    """Yields where the masks' spans overlap, or leave bytes of the file of PNGs to nobody.

    Args:
      spans: int64 [N, 2], offset and length.
      size: of the file of PNGs in bytes.
      where: the file that the spans are in, for the messages.
    """
    rows = np.flatnonzero(spans[:, 1])
    rows = rows[np.argsort(spans[rows, 0], kind="stable")]
    starts = spans[rows, 0]
    ends = starts + spans[rows, 1]
    furthest = np.maximum.accumulate(ends)
    previous_ends = np.concatenate([[0], furthest[:-1]])
    for place in np.flatnonzero(starts != previous_ends):
        start, end, row = starts[place], previous_ends[place], rows[place]
        if start < end:
            yield f"{where}: the mask of row {row} overlaps another's at byte {start}"
        else:
            yield f"{where}: no row has bytes {end} to {start}, before row {row}"
    used = furthest[-1] if len(rows) else 0
    if used < size:
        yield f"{where}: no row has the last {size - used} bytes of the masks, from {used} on"

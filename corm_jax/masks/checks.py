"""What rows of mask records must fulfil: each check yields a line for every row that does not."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KINDS = ("core", "spurious")  # bit i of `kinds.npy` stands for KINDS[i]


def row_checks(
    path: Path, arrays: dict[str, np.ndarray], pngs: dict[str, np.ndarray]
) -> Iterator[Iterator[str]]:
    """Yields every check of rows that looks at no mask.

    Args:
      path: the directory of mask records.
      arrays: its arrays by file name; what is not there is not checked.
      pngs: its files of PNGs as uint8 [size], by kind.
    """
    if "file_names.npy" in arrays:
        yield repeated_names(arrays["file_names.npy"], f"{path}/file_names.npy")
    if "kinds.npy" in arrays:
        yield unknown_kinds(arrays["kinds.npy"], f"{path}/kinds.npy")
    if "frames.npy" in arrays and "file_names.npy" in arrays:
        yield misplaced_frames(arrays["frames.npy"], arrays["file_names.npy"], f"{path}/frames.npy")
    if "kinds.npy" in arrays:
        for kind, data in pngs.items():
            if f"{kind}_spans.npy" in arrays:
                has = has_kind(arrays["kinds.npy"], kind)
                yield misplaced_spans(path, kind, arrays[f"{kind}_spans.npy"], has, len(data))


def has_kind(kinds: np.ndarray, kind: str) -> np.ndarray:
    """Returns bool [N]: which of the kinds uint8 [N] say that there is a mask of this kind."""
    return (kinds & (1 << KINDS.index(kind))) != 0


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


def misplaced_frames(boxes: np.ndarray, names: np.ndarray, where: str) -> Iterator[str]:
    """Yields the rows whose frame is not within its image.

    Args:
      boxes: float32 [N, 4], see `boxes_outside`.
      names: bytes [N], file names.
      where: the file that the boxes are in, for the messages.
    """
    for row, problem in boxes_outside(boxes):
        yield f"{where}: row {row} ({os.fsdecode(names[row])!r}): {problem}"


def unknown_kinds(kinds: np.ndarray, where: str) -> Iterator[str]:
    """Yields the rows whose kinds, uint8 [N], have a bit that stands for nothing."""
    for row in np.flatnonzero(kinds >> len(KINDS)):
        yield f"{where}: row {row} has the unknown kinds {kinds[row]}; write the records again"


def misplaced_spans(
    path: Path, kind: str, spans: np.ndarray, has: np.ndarray, size: int
) -> Iterator[str]:
    """Yields the rows whose spans contradict the kinds, or go beyond the file of PNGs.

    Args:
      path: the directory of mask records.
      kind: of the masks.
      spans: int64 [N, 2], offset and length.
      has: bool [N], whether the kinds say that there is a mask.
      size: of the file of PNGs in bytes.
    """
    offsets, lengths = spans.T
    contradicts = (offsets < 0) | (lengths < 0) | ((lengths > 0) != has)
    for row in np.flatnonzero(contradicts):
        yield f"{path}/{kind}_spans.npy contradicts kinds.npy in row {row}; write the records again"
    for row in np.flatnonzero(~contradicts & ~spans_inside(spans, size)):
        yield (
            f"{path}/{kind}.bin is truncated: row {row} needs bytes {offsets[row]} to "
            f"{int(offsets[row]) + int(lengths[row])} of {size}; write the records again"
        )


def spans_inside(spans: np.ndarray, size: int) -> np.ndarray:
    """Returns bool [N]: which spans, int64 [N, 2], lie within a file of `size` bytes."""
    offsets, lengths = spans.T
    # Compared in such a way that no sum can overflow.
    return (offsets >= 0) & (lengths >= 0) & (lengths <= np.maximum(size - offsets, 0))


def gaps_between_spans(spans: np.ndarray, size: int, where: str) -> Iterator[str]:
    """Yields where the masks' spans overlap, or leave bytes of the file of PNGs to nobody.

    Args:
      spans: int64 [N, 2], offset and length; only of those within the file is anything said.
      size: of the file of PNGs in bytes.
      where: the file that the spans are in, for the messages.
    """
    rows = np.flatnonzero(spans_inside(spans, size) & (spans[:, 1] > 0))
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

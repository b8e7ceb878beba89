"""Mask records on disk: a directory with one row for every image that has masks.

Schema (`corm_jax.masks/1`), N rows in any order, files as numpy arrays:

    masks.json       {"schema", "records": N, "encoding": "grid" | "png", "grid": [h, w] | null,
                      "frame": {"type": ...}, "source": free text, "sha256": {file: hash}}
    file_names.npy   bytes [N]: the image's file name in its data set, unique; the key of the join
    kinds.npy        uint8 [N]: bit 0 set where the row has a core mask, bit 1 a spurious mask
    frames.npy       float32 [N, 4], only for frame type "box": top, left, bottom, right in [0, 1]
  encoding "grid" (a low-resolution soft mask, stretched over the frame), for each kind:
    <kind>.npy       uint8 [N, h, w]: 255 is entirely core (or spurious); zeros where absent
  encoding "png" (8-bit or 1-bit grey PNG of any size, stretched over the frame), for each kind:
    <kind>.bin       the PNG files one after another
    <kind>_spans.npy int64 [N, 2]: offset and length in <kind>.bin; length 0 where absent

The frame says which part of the image the mask covers; outside it the mask says nothing:

    {"type": "full"}                                    the whole image
    {"type": "center_crop", "resize": R, "crop": C}     the central C x C after the image's shorter
                                                        side was resized to R (256, 224 in
                                                        Salient ImageNet)
    {"type": "box"}                                     a box a row, in `frames.npy`
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from corm_jax.errors import UserError
from corm_jax.files import read_json

SCHEMA = "corm_jax.masks/1"
KINDS = ("core", "spurious")
FULL_FRAME: dict[str, Any] = {"type": "full"}


class MaskSource(Protocol):
    """What the join needs of a set of masks.

    Attributes:
      file_names: bytes [N], unique.
      encoding: "grid" or "png".
      grid: (h, w) of the masks, None for PNG.
      frame: see the module's docstring.
    """

    file_names: np.ndarray
    encoding: str
    grid: tuple[int, int] | None
    frame: dict[str, Any]

    def has(self, kind: str) -> np.ndarray:
        """Returns bool [N]: which rows have a mask of this kind."""

    def grids(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 [len(rows), h, w]; only for encoding "grid"."""

    def png(self, kind: str, row: int) -> bytes:
        """Returns the PNG file of a row; only for encoding "png"."""

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 [len(rows), 4]: the frames' boxes; the whole image if not "box"."""

    def describe(self, row: int) -> str:
        """Returns where the mask of a row is, for error messages."""


@dataclass(frozen=True)
class MaskRecords:
    """A directory of mask records, memory-mapped; a `MaskSource`."""

    path: Path
    file_names: np.ndarray
    encoding: str
    grid: tuple[int, int] | None
    frame: dict[str, Any]
    source: str
    _kinds: np.ndarray
    _boxes: np.ndarray | None
    _arrays: dict[str, np.ndarray]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a directory of mask records.

        Raises:
          UserError: if something is missing or does not follow the schema; names the file.
        """
        if not (path / "masks.json").is_file():
            raise UserError(f"{path} holds no mask records (no masks.json there)")
        header = _read_header(path)
        count, grid, frame = header["records"], header["grid"], header["frame"]
        names = _load(path / "file_names.npy", (count,), np.bytes_)
        values, counts = np.unique(names, return_counts=True)
        if len(values) != count:
            example = os.fsdecode(values[counts > 1][0])
            raise UserError(f"{path}: two records for image {example!r}")
        boxes = None
        if frame["type"] == "box":
            boxes = _load(path / "frames.npy", (count, 4), np.float32)
            check_boxes(boxes, names, f"{path}/frames.npy")
        records = cls(
            path=path,
            file_names=names,
            encoding=header["encoding"],
            grid=None if grid is None else tuple(grid),
            frame=frame,
            source=header["source"],
            _kinds=_load(path / "kinds.npy", (count,), np.uint8),
            _boxes=boxes,
            _arrays={},
        )
        for kind in KINDS:
            records._open_kind(kind)
        return records

    def _open_kind(self, kind: str) -> None:
        count, arrays = len(self.file_names), self._arrays
        if self.grid is not None:
            arrays[kind] = _load(self.path / f"{kind}.npy", (count, *self.grid), np.uint8)
            return
        spans = _load(self.path / f"{kind}_spans.npy", (count, 2), np.int64)
        if ((spans < 0).any(axis=1) | ((spans[:, 1] > 0) != self.has(kind))).any():
            raise UserError(
                f"{self.path}/{kind}_spans.npy contradicts kinds.npy; write the records again"
            )
        data = self.path / f"{kind}.bin"
        try:
            size = data.stat().st_size
            arrays[kind] = np.memmap(data, np.uint8, "r") if size else np.zeros(0, np.uint8)
        except OSError as error:
            raise UserError(f"cannot read {data}: {error.strerror}") from error
        if count and spans.sum(axis=1).max() > size:
            raise UserError(f"{data} is truncated ({size} bytes); write the records again")
        arrays[f"{kind}_spans"] = spans

    def has(self, kind: str) -> np.ndarray:
        """Returns bool [N]: which rows have a mask of this kind."""
        return (self._kinds & (1 << KINDS.index(kind))) != 0

    def grids(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 [len(rows), h, w]."""
        return self._arrays[kind][rows]

    def png(self, kind: str, row: int) -> bytes:
        """Returns the PNG file of a row."""
        offset, length = self._arrays[f"{kind}_spans"][row]
        return self._arrays[kind][offset : offset + length].tobytes()

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 [len(rows), 4]: the frames' boxes; the whole image if not "box"."""
        if self._boxes is None:
            return whole_image(len(rows))
        return self._boxes[rows]

    def describe(self, row: int) -> str:
        """Returns where the mask of a row is, for error messages."""
        return f"{self.path}: record of {os.fsdecode(self.file_names[row])!r}"


def whole_image(count: int) -> np.ndarray:
    """Returns float32 [count, 4]: the box of the whole image for each row."""
    return np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))


def _read_header(path: Path) -> dict[str, Any]:
    """Returns `masks.json` of a directory, its fields checked."""
    header, where = read_json(path / "masks.json"), f"{path}/masks.json"
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{where}: schema {schema!r}, not {SCHEMA!r}")
    missing = {"records", "encoding", "grid", "frame", "source"} - set(header)
    if missing:
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}; write the records again")
    if not isinstance(header["records"], int) or header["records"] < 0:
        raise UserError(f"{where}: records {header['records']!r} is not a number of rows")
    check_encoding(header["encoding"], header["grid"], where)
    check_frame(header["frame"], where)
    return header


def _load(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r" if np.prod(shape) else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); write the records again") from error
    if array.shape != shape or not np.issubdtype(array.dtype, dtype):
        raise UserError(
            f"{path} is {array.dtype} {array.shape}, expected {dtype.__name__} {shape}; "
            "write the records again"
        )
    return array


def check_encoding(encoding: Any, grid: Any, where: str) -> None:
    """Raises UserError unless the encoding is "grid" with a grid of [h, w], or "png" with none."""
    fits = grid is None
    if encoding == "grid":
        fits = isinstance(grid, list | tuple) and len(grid) == 2
        fits = fits and all(isinstance(side, int) and side > 0 for side in grid)
    if encoding not in ("grid", "png") or not fits:
        raise UserError(
            f"{where}: encoding {encoding!r} with grid {grid!r} is not 'grid' with [height, width] "
            "or 'png' with none"
        )


def check_frame(frame: Any, where: str) -> None:
    """Raises UserError if a frame does not follow the schema."""
    fields = {"full": set(), "center_crop": {"resize", "crop"}, "box": set()}
    kind = frame.get("type") if isinstance(frame, dict) else None
    if kind not in fields or set(frame) - {"type"} != fields[kind]:
        raise UserError(f"{where}: frame {frame} is not full, box, or center_crop with its sizes")
    if kind == "center_crop":
        crop, resize = frame["crop"], frame["resize"]
        if not (isinstance(crop, int) and isinstance(resize, int) and 0 < crop <= resize):
            raise UserError(f"{where}: frame {frame} lies outside its image (0 < crop <= resize)")


def check_boxes(boxes: np.ndarray, names: Sequence[bytes], where: str) -> None:
    """Raises UserError if any of the boxes [N, 4] of the images `names` is not within [0, 1]."""
    top, left, bottom, right = boxes.T
    fits = (top >= 0) & (top < bottom) & (bottom <= 1) & (left >= 0) & (left < right) & (right <= 1)
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        raise UserError(
            f"{where}: {os.fsdecode(names[row])!r}: frame {boxes[row].tolist()} lies outside its "
            "image (0 <= top < bottom <= 1, 0 <= left < right <= 1)"
        )

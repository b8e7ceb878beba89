"""Mask records on disk: a directory with one row for every image that has masks.

Schema (`corm_jax.masks/1`), N rows in any order, files as numpy arrays:

    masks.json       {"schema", "records": N, "encoding": "grid" | "png", "grid": [h, w] | null,
                      "size": of PNG files only: [h, w] of each, null or absent where they differ,
                      "frame": {"type": ...}, "source": free text, "sha256": {file: hash},
                      "origin": of imported masks only: {"format", "options", "fingerprint"},
                      see `corm_jax.masks.origin`}
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

import itertools
import os
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from corm_jax.errors import UserError
from corm_jax.files import read_json
from corm_jax.masks import checks
from corm_jax.masks.checks import KINDS

SCHEMA = "corm_jax.masks/1"
FULL_FRAME: dict[str, Any] = {"type": "full"}


class MaskSource(Protocol):
    """What the join needs of a set of masks.

    Attributes:
      file_names: bytes [N], unique.
      encoding: "grid" or "png".
      size: (h, w) of every mask, None where they differ.
      frame: see the module's docstring.
    """

    file_names: np.ndarray
    encoding: str
    size: tuple[int, int] | None
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
    size: tuple[int, int] | None
    frame: dict[str, Any]
    source: str
    _arrays: dict[str, np.ndarray]
    _pngs: dict[str, np.ndarray]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a directory of mask records.

        Raises:
          UserError: if something is missing or does not follow the schema; names the file.
        """
        header = read_header(path)
        arrays = {
            name: load_array(path / name, shape, dtype)
            for name, (shape, dtype) in array_files(header).items()
        }
        grid, size = header["grid"], header["grid"] or header.get("size")
        records = cls(
            path=path,
            file_names=arrays["file_names.npy"],
            encoding=header["encoding"],
            size=None if size is None else tuple(size),
            frame=header["frame"],
            source=header["source"],
            _arrays=arrays,
            _pngs={} if grid else {kind: map_bytes(path / f"{kind}.bin") for kind in KINDS},
        )
        found = checks.row_checks(path, arrays, records._pngs)
        for problem in itertools.chain.from_iterable(found):
            raise UserError(problem)
        return records

    def has(self, kind: str) -> np.ndarray:
        """Returns bool [N]: which rows have a mask of this kind."""
        return checks.has_kind(self._arrays["kinds.npy"], kind)

    def grids(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 [len(rows), h, w]."""
        return self._arrays[f"{kind}.npy"][rows]

    def png(self, kind: str, row: int) -> bytes:
        """Returns the PNG file of a row."""
        offset, length = self._arrays[f"{kind}_spans.npy"][row]
        return self._pngs[kind][offset : offset + length].tobytes()

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 [len(rows), 4]: the frames' boxes; the whole image if not "box"."""
        if "frames.npy" not in self._arrays:
            return whole_image(len(rows))
        return self._arrays["frames.npy"][rows]

    def describe(self, row: int) -> str:
        """Returns where the mask of a row is, for error messages."""
        return f"{self.path}: record of {os.fsdecode(self.file_names[row])!r}"


def whole_image(count: int) -> np.ndarray:
    """Returns float32 [count, 4]: the box of the whole image for each row."""
    return np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))


def read_header(path: Path) -> dict[str, Any]:
    """Returns `masks.json` of a directory, its fields checked.

    Raises:
      UserError: if it is missing or does not follow the schema.
    """
    if not (path / "masks.json").is_file():
        raise UserError(f"{path} holds no mask records (no masks.json there)")
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
    size = header.get("size")
    if size is not None and (header["grid"] or not is_size(size)):
        raise UserError(f"{where}: size {size!r} is not the [height, width] of PNG files")
    check_frame(header["frame"], where)
    return header


def array_files(header: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Returns the arrays that records with this header have: file name -> (shape, dtype)."""
    count, grid = header["records"], header["grid"]
    files: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "file_names.npy": ((count,), np.bytes_),
        "kinds.npy": ((count,), np.uint8),
    }
    if header["frame"]["type"] == "box":
        files["frames.npy"] = ((count, 4), np.float32)
    for kind in KINDS:
        if grid is None:
            files[f"{kind}_spans.npy"] = ((count, 2), np.int64)
        else:
            files[f"{kind}.npy"] = ((count, *grid), np.uint8)
    return files


def load_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """Memory-maps a `.npy` file.

    Raises:
      UserError: if it cannot be read, or holds another shape or dtype.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, TypeError, tokenize.TokenError) as error:
        raise UserError(f"{path} cannot be read ({error}); write the records again") from error
    if array.shape != shape or not np.issubdtype(array.dtype, dtype):
        raise UserError(
            f"{path} is {array.dtype} {array.shape}, expected {dtype.__name__} {shape}; "
            "write the records again"
        )
    return array


def map_bytes(path: Path) -> np.ndarray:
    """Memory-maps a file as uint8 [size].

    Raises:
      UserError: if it cannot be read.
    """
    try:
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def is_size(value: Any) -> bool:
    """Returns whether something is (height, width), both at least 1."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
    )


def check_encoding(encoding: Any, grid: Any, where: str) -> None:
    """Raises UserError unless the encoding is "grid" with a grid of [h, w], or "png" with none."""
    fits = grid is None
    if encoding == "grid":
        fits = is_size(grid)
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
    for row, problem in checks.boxes_outside(boxes):
        raise UserError(f"{where}: {os.fsdecode(names[row])!r}: {problem}")

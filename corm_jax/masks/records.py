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

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from corm_jax.errors import UserError
from corm_jax.files import read_json, replacing_directory, write_json

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


class MaskWriter:
    """Writes mask records row by row; the directory appears, complete, when the block ends.

    Example:
      with MaskWriter(Path("masks/mine"), encoding="grid", grid=(7, 7)) as writer:
        writer.add("n01440764_18.JPEG", core=grid)
    """

    def __init__(
        self,
        path: Path,
        *,
        encoding: str,
        grid: tuple[int, int] | None = None,
        frame: dict[str, Any] = FULL_FRAME,
        source: str = "",
    ) -> None:
        """Prepares to write; arguments are the fields of `masks.json`."""
        if (encoding == "grid") != (grid is not None) or encoding not in ("grid", "png"):
            raise ValueError("encoding is 'grid' with a grid size, or 'png' without one")
        _check_frame(frame, path)
        self._path, self._encoding, self._grid = path, encoding, grid
        self._frame, self._source = dict(frame), source
        self._names: dict[bytes, None] = {}
        self._kinds: list[int] = []
        self._boxes: list[Sequence[float]] = []
        self._spans: dict[str, list[tuple[int, int]]] = {kind: [] for kind in KINDS}

    def __enter__(self) -> Self:
        self._replacing = replacing_directory(self._path)
        self._directory = self._replacing.__enter__()
        self._data = {k: (self._directory / f"{k}.data").open("wb") for k in KINDS}
        return self

    def add(
        self,
        file_name: str,
        *,
        core: np.ndarray | bytes | None = None,
        spurious: np.ndarray | bytes | None = None,
        box: Sequence[float] | None = None,
    ) -> None:
        """Adds the masks of one image.

        Args:
          file_name: the image's file name, unique.
          core: uint8 [h, w] grid, or the bytes of a PNG file; None if there is none.
          spurious: likewise.
          box: top, left, bottom, right in [0, 1] of the frame; only for frame type "box".

        Raises:
          UserError: if the row does not follow the schema; names the image.
        """
        name = file_name.encode()
        if name in self._names:
            raise UserError(f"{self._path}: two records for image {file_name!r}")
        if (box is not None) != (self._frame["type"] == "box"):
            raise UserError(f"{self._path}: {file_name!r}: a box goes with frame type 'box' only")
        if box is not None:
            _check_box(box, f"{self._path}: {file_name!r}")
            self._boxes.append(tuple(box))
        kinds = 0
        for bit, (kind, mask) in enumerate(zip(KINDS, (core, spurious), strict=True)):
            kinds |= (mask is not None) << bit
            payload = b""
            if self._grid is not None:
                cells = np.zeros(self._grid, np.uint8) if mask is None else mask
                if not isinstance(cells, np.ndarray) or cells.dtype != np.uint8:
                    raise UserError(f"{self._path}: {file_name!r}: {kind} mask is not uint8")
                if cells.shape != tuple(self._grid):
                    raise UserError(
                        f"{self._path}: {file_name!r}: {kind} mask is {cells.shape}, "
                        f"the records' grid is {tuple(self._grid)}"
                    )
                payload = cells.tobytes()
            elif mask is not None:
                if not isinstance(mask, bytes) or not mask.startswith(b"\x89PNG"):
                    raise UserError(f"{self._path}: {file_name!r}: {kind} mask is not a PNG file")
                payload = mask
            self._spans[kind].append((self._data[kind].tell(), len(payload)))
            self._data[kind].write(payload)
        self._names[name] = None
        self._kinds.append(kinds)

    def __exit__(self, *exc_info: Any) -> bool | None:
        for file in self._data.values():
            file.close()
        if exc_info[0] is None:
            self._finish()
        return self._replacing.__exit__(*exc_info)

    def _finish(self) -> None:
        directory, count = self._directory, len(self._names)
        arrays: dict[str, np.ndarray] = {
            "file_names.npy": np.array(list(self._names), dtype=np.bytes_),
            "kinds.npy": np.array(self._kinds, np.uint8),
        }
        if self._frame["type"] == "box":
            arrays["frames.npy"] = np.array(self._boxes, np.float32).reshape(count, 4)
        for kind in KINDS:
            data = directory / f"{kind}.data"
            if self._grid is not None:
                # Streamed to a file first, so that a million grids need no memory here.
                grids = np.memmap(data, np.uint8, "r") if count else np.zeros(0, np.uint8)
                arrays[f"{kind}.npy"] = grids.reshape(count, *self._grid)
            else:
                data.rename(directory / f"{kind}.bin")
                arrays[f"{kind}_spans.npy"] = np.array(self._spans[kind], np.int64).reshape(-1, 2)
        for name, array in arrays.items():
            np.save(directory / name, array)
        for data in directory.glob("*.data"):
            data.unlink()
        header = {
            "schema": SCHEMA,
            "records": count,
            "encoding": self._encoding,
            "grid": self._grid,
            "frame": self._frame,
            "source": self._source,
            "sha256": {f.name: file_hash(f) for f in sorted(directory.iterdir())},
        }
        write_json(directory / "masks.json", header)


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
        header = read_json(path / "masks.json")
        if header.get("schema") != SCHEMA:
            raise UserError(f"{path}/masks.json: schema {header.get('schema')!r}, not {SCHEMA!r}")
        count, grid = header["records"], header["grid"]
        _check_frame(header["frame"], path)
        names = _load(path / "file_names.npy", (count,))
        if len(np.unique(names)) != count:
            values, counts = np.unique(names, return_counts=True)
            raise UserError(f"{path}: two records for image {values[counts > 1][0].decode()!r}")
        boxes = None
        if header["frame"]["type"] == "box":
            boxes = _load(path / "frames.npy", (count, 4))
        arrays = {}
        for kind in KINDS:
            if grid is not None:
                arrays[kind] = _load(path / f"{kind}.npy", (count, *grid))
                continue
            spans = arrays[f"{kind}_spans"] = _load(path / f"{kind}_spans.npy", (count, 2))
            size = (path / f"{kind}.bin").stat().st_size
            if count and spans.sum(axis=1).max() > size:
                raise UserError(f"{path}/{kind}.bin is truncated ({size} bytes); write it again")
            empty = np.zeros(0, np.uint8)
            arrays[kind] = np.memmap(path / f"{kind}.bin", np.uint8, "r") if size else empty
        return cls(
            path=path,
            file_names=names,
            encoding=header["encoding"],
            grid=tuple(grid) if grid is not None else None,
            frame=header["frame"],
            source=header["source"],
            _kinds=_load(path / "kinds.npy", (count,)),
            _boxes=boxes,
            _arrays=arrays,
        )

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
        return f"{self.path}: record of {self.file_names[row].decode()!r}"


def whole_image(count: int) -> np.ndarray:
    """Returns float32 [count, 4]: the box of the whole image for each row."""
    return np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r" if np.prod(shape) else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); write the records again") from error
    if array.shape != shape:
        raise UserError(f"{path}: shape {array.shape}, expected {shape}; write the records again")
    return array


def _check_frame(frame: dict[str, Any], where: Path) -> None:
    fields = {"full": set(), "center_crop": {"resize", "crop"}, "box": set()}
    kind = frame.get("type")
    if kind not in fields or set(frame) - {"type"} != fields[kind]:
        raise UserError(f"{where}: frame {frame} is not full, box, or center_crop with its sizes")
    if kind == "center_crop" and not 0 < frame["crop"] <= frame["resize"]:
        raise UserError(f"{where}: frame {frame} lies outside its image (crop > resize)")


def _check_box(box: Sequence[float], where: str) -> None:
    top, left, bottom, right = box
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise UserError(f"{where}: frame {tuple(box)} lies outside its image")

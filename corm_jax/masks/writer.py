"""Writes mask records; see `corm_jax.masks.records` for the schema."""

import array
import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from corm_jax.errors import UserError
from corm_jax.files import replacing_directory, reporting, write_json
from corm_jax.masks.png import mask_size
from corm_jax.masks.records import (
    FULL_FRAME,
    KINDS,
    SCHEMA,
    check_boxes,
    check_encoding,
    check_frame,
)


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
        origin: dict[str, Any] | None = None,
    ) -> None:
        """Prepares to write; arguments are the fields of `masks.json`.

        Raises:
          UserError: if they do not follow the schema.
        """
        check_encoding(encoding, grid, str(path))
        check_frame(frame, str(path))
        self._path, self._encoding, self._grid = path, encoding, grid
        self._frame, self._source, self._origin = dict(frame), source, origin
        self._names: dict[bytes, None] = {}
        # Arrays, not lists: a million rows in tens of megabytes.
        self._kinds = array.array("B")
        self._boxes = array.array("f")
        self._spans = {kind: array.array("q") for kind in KINDS}
        self._sizes: set[tuple[int, int]] = set()  # of PNG masks

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._directory = stack.enter_context(replacing_directory(self._path))
            with reporting(self._path):
                self._data = {
                    kind: stack.enter_context((self._directory / f"{kind}.data").open("wb"))
                    for kind in KINDS
                }
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: Any) -> bool | None:
        return self._stack.__exit__(*exc_info)

    def add(
        self,
        file_name: str,
        *,
        core: np.ndarray | bytes | None = None,
        spurious: np.ndarray | bytes | None = None,
        box: Sequence[float] | None = None,
    ) -> None:
        """Adds the masks of one image, or nothing if it raises.

        Args:
          file_name: the image's file name, unique.
          core: uint8 [h, w] grid, or the bytes of a PNG file; None if there is none.
          spurious: likewise.
          box: top, left, bottom, right in [0, 1] of the frame; only for frame type "box".

        Raises:
          UserError: if the row does not follow the schema; names the image.
        """
        name, where = os.fsencode(file_name), f"{self._path}: {file_name!r}"
        if name in self._names:
            raise UserError(f"{self._path}: two records for image {file_name!r}")
        if (box is not None) != (self._frame["type"] == "box"):
            raise UserError(f"{where}: a box goes with frame type 'box' only, and always")
        masks = {"core": core, "spurious": spurious}
        payloads = {k: self._encode(mask, f"{where}: {k} mask") for k, mask in masks.items()}
        if box is not None:
            edges = np.array(box, np.float32).reshape(4)
            check_boxes(edges[None], [name], str(self._path))
            self._boxes.extend(edges)
        self._names[name] = None
        self._kinds.append(sum((masks[kind] is not None) << i for i, kind in enumerate(KINDS)))
        with reporting(self._path):
            for kind, payload in payloads.items():
                self._spans[kind].extend((self._data[kind].tell(), len(payload)))
                self._data[kind].write(payload)

    def _encode(self, mask: np.ndarray | bytes | None, what: str) -> bytes:
        """Returns the bytes that stand for a mask in its `.data` file."""
        if self._grid is None:
            if mask is None:
                return b""
            if not isinstance(mask, bytes):
                raise UserError(f"{what} is not the bytes of a PNG file")
            self._sizes.add(mask_size(mask, what))
            return mask
        if mask is None:
            return bytes(self._grid[0] * self._grid[1])
        if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8:
            raise UserError(f"{what} is not a uint8 array")
        if mask.shape != tuple(self._grid):
            raise UserError(f"{what} is {mask.shape}, the records' grid is {tuple(self._grid)}")
        return mask.tobytes()

    def _finish(self, exc_type: type[BaseException] | None, *_: Any) -> None:
        """Writes what is left, unless the block failed."""
        if exc_type is not None:
            return
        with reporting(self._path):
            for file in self._data.values():
                file.close()
            self._write_arrays()
            header = {
                "schema": SCHEMA,
                "records": len(self._names),
                "encoding": self._encoding,
                "grid": self._grid,
                "size": next(iter(self._sizes)) if len(self._sizes) == 1 else None,
                "frame": self._frame,
                "source": self._source,
                "sha256": {f.name: file_hash(f) for f in sorted(self._directory.iterdir())},
            }
            if self._origin is not None:
                header["origin"] = self._origin
            write_json(self._directory / "masks.json", header)

    def _write_arrays(self) -> None:
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
        for name, values in arrays.items():
            np.save(directory / name, values)
        for data in directory.glob("*.data"):
            data.unlink()


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

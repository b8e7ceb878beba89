"""Mask records: what the writer writes, the reader reads; everything else is refused."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corm_jax.masks.records import MaskRecords
from corm_jax.masks.writer import MaskWriter

CENTER_CROP = {"type": "center_crop", "resize": 256, "crop": 224}


def png(pixels: np.ndarray, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


WHITE = np.full((3, 5), 255, np.uint8)


def test_grids_of_either_kind_or_none_come_back(grid_records: Path) -> None:
    records = MaskRecords.open(grid_records)
    assert records.encoding == "grid"
    assert records.size == (2, 3)
    assert records.frame == {"type": "full"}
    assert records.file_names.tolist() == [b"both", b"none"]
    assert records.has("core").tolist() == records.has("spurious").tolist() == [True, False]
    rows = np.array([1, 0, 0])
    np.testing.assert_array_equal(records.grids("core", rows)[:, 0, 0], [0, 7, 7])
    np.testing.assert_array_equal(records.grids("spurious", rows)[:, 1, 2], [0, 9, 9])
    np.testing.assert_array_equal(records.boxes(rows), [[0, 0, 1, 1]] * 3)


def test_png_files_come_back_byte_by_byte(png_records: Path) -> None:
    records = MaskRecords.open(png_records)
    assert records.encoding == "png"
    assert records.size == (3, 5)
    assert records.has("core").tolist() == [True, False]
    assert records.has("spurious").tolist() == [False, True]
    assert records.png("core", 0) == png(WHITE)
    assert records.png("core", 1) == records.png("spurious", 0) == b""
    assert records.png("spurious", 1) == png(WHITE, "1")


def test_frames_come_back(tmp_path: Path, box_records: Path) -> None:
    with MaskWriter(
        tmp_path / "crop", encoding="grid", grid=(1, 1), frame=CENTER_CROP, source="by hand"
    ) as writer:
        writer.add("a")
    records = MaskRecords.open(tmp_path / "crop")
    assert (records.frame, records.source) == (CENTER_CROP, "by hand")
    boxes = MaskRecords.open(box_records)
    assert boxes.frame == {"type": "box"}
    np.testing.assert_array_equal(boxes.boxes(np.array([0, 0])), [[0, 0.25, 0.5, 1]] * 2)


@pytest.mark.parametrize("encoding", ["grid", "png"])
def test_no_rows_are_valid_records(tmp_path: Path, encoding: str) -> None:
    grid = (2, 2) if encoding == "grid" else None
    with MaskWriter(tmp_path / "m", encoding=encoding, grid=grid, frame={"type": "box"}):
        pass
    records = MaskRecords.open(tmp_path / "m")
    assert len(records.file_names) == len(records.has("core")) == 0


def test_header_holds_the_sha256_of_every_other_file(png_records: Path, box_records: Path) -> None:
    for path in (png_records, box_records):
        header = json.loads((path / "masks.json").read_text())
        others = {file.name for file in path.iterdir()} - {"masks.json"}
        assert set(header["sha256"]) == others
        for name, expected in header["sha256"].items():
            assert hashlib.sha256((path / name).read_bytes()).hexdigest() == expected


unit = st.floats(0, 1, width=32)
grids = st.none() | st.binary(min_size=6, max_size=6)
rows = st.dictionaries(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1),
    st.tuples(grids, grids, st.lists(unit, min_size=4, max_size=4)),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(rows=rows, boxed=st.booleans(), encoding=st.sampled_from(["grid", "png"]))
def test_any_rows_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[str, tuple[bytes | None, bytes | None, list[float]]],
    boxed: bool,
    encoding: str,
) -> None:
    path = tmp_path_factory.mktemp("records") / "m"
    expected = {}
    for name, (core, spurious, box) in rows.items():
        masks = [
            None if m is None else np.frombuffer(m, np.uint8).reshape(2, 3)
            for m in (core, spurious)
        ]
        top, bottom = sorted(box[:2])
        left, right = sorted(box[2:])
        if top < bottom and left < right:
            expected[name] = (masks, (top, left, bottom, right))
    with MaskWriter(
        path,
        encoding=encoding,
        grid=(2, 3) if encoding == "grid" else None,
        frame={"type": "box"} if boxed else {"type": "full"},
    ) as writer:
        for name, (masks, box) in expected.items():
            encoded = [m if m is None or encoding == "grid" else png(m) for m in masks]
            writer.add(name, core=encoded[0], spurious=encoded[1], box=box if boxed else None)
    records = MaskRecords.open(path)
    assert [name.decode() for name in records.file_names] == list(expected)
    for row, (masks, box) in enumerate(expected.values()):
        assert tuple(records.boxes(np.array([row]))[0]) == (box if boxed else (0, 0, 1, 1))
        for kind, mask in zip(("core", "spurious"), masks, strict=True):
            assert records.has(kind)[row] == (mask is not None)
            if encoding == "grid":
                found = records.grids(kind, np.array([row]))[0]
                np.testing.assert_array_equal(found, np.zeros((2, 3)) if mask is None else mask)
            elif mask is not None:
                found = np.asarray(Image.open(io.BytesIO(records.png(kind, row))))
                np.testing.assert_array_equal(found, mask)

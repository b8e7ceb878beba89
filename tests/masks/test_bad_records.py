"""Mask records that do not follow the schema are refused, by the writer and the reader."""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corm_jax.errors import UserError
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.writer import MaskWriter

Row = tuple[str, dict]
WHITE = np.full((3, 5), 255, np.uint8)


def png(pixels: np.ndarray, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def write(path: Path, rows: Iterable[Row], **arguments: object) -> None:
    with MaskWriter(path, **arguments) as writer:
        for name, masks in rows:
            writer.add(name, **masks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoding": "grid"}, "grid"),
        ({"encoding": "png", "grid": (7, 7)}, "grid"),
        ({"encoding": "grid", "grid": (0, 7)}, "grid"),
        ({"encoding": "jpeg"}, "jpeg"),
        ({"encoding": "png", "frame": {"type": "centre"}}, "centre"),
        ({"encoding": "png", "frame": {"type": "center_crop", "crop": 224}}, "center_crop"),
        (
            {"encoding": "png", "frame": {"type": "center_crop", "resize": 224, "crop": 256}},
            "outside its image",
        ),
    ],
)
def test_writer_refuses_arguments_that_do_not_follow_the_schema(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        MaskWriter(tmp_path / "m", **arguments)


@pytest.mark.parametrize(
    ("encoding", "row", "message"),
    [
        ("grid", {"core": np.zeros((2, 2), np.uint8)}, r"core mask is \(2, 2\)"),
        ("grid", {"spurious": np.zeros((2, 3), np.float32)}, "spurious mask is not a uint8"),
        ("grid", {"core": b"bytes"}, "core mask is not a uint8"),
        ("grid", {"box": (0, 0, 1, 1)}, "box"),
        ("png", {"core": np.zeros((2, 3), np.uint8)}, "core mask is not the bytes of a PNG"),
        ("png", {"core": b"\xff\xd8\xff\xe0" + b"jpeg" * 9}, "not a readable PNG"),
        ("png", {"core": b"\x89PNG"}, "not a readable PNG"),
        ("png", {"core": png(WHITE, "RGBA")}, "RGB with alpha.*8-bit grey"),
        ("png", {"core": png(WHITE, "P")}, "palette"),
        ("png", {"core": png(WHITE, "I;16")}, "16-bit grey"),
    ],
)
def test_writer_names_the_image_of_a_bad_row_and_leaves_nothing(
    tmp_path: Path, encoding: str, row: dict, message: str
) -> None:
    grid = (2, 3) if encoding == "grid" else None
    with pytest.raises(UserError, match=message) as caught:
        write(tmp_path / "m", [("fine", {}), ("n01.JPEG", row)], encoding=encoding, grid=grid)
    assert "n01.JPEG" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "box", [None, (0, 0, 1, 1.01), (-0.1, 0, 1, 1), (0.5, 0, 0.5, 1), (0, float("nan"), 1, 1)]
)
def test_writer_refuses_a_box_that_is_missing_or_outside_the_image(
    tmp_path: Path, box: tuple | None
) -> None:
    with pytest.raises(UserError, match="'n01'"):
        write(
            tmp_path / "m",
            [("n01", {"box": box})],
            encoding="grid",
            grid=(1, 1),
            frame={"type": "box"},
        )


def test_writer_refuses_a_second_record_of_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two records for image 'a'"):
        write(tmp_path / "m", [("a", {}), ("a", {})], encoding="png")


def test_a_refused_row_can_be_left_out(tmp_path: Path) -> None:
    with MaskWriter(tmp_path / "m", encoding="grid", grid=(1, 1), frame={"type": "box"}) as writer:
        bad, good = np.zeros((9, 9), np.uint8), np.full((1, 1), 5, np.uint8)
        with pytest.raises(UserError):
            writer.add("bad", core=good, spurious=bad, box=(0, 0, 1, 1))
        writer.add("good", core=good, box=(0, 0, 0.5, 1))
    records = MaskRecords.open(tmp_path / "m")
    assert records.file_names.tolist() == [b"good"]
    assert records.grids("core", np.array([0])).tolist() == [[[5]]]
    assert records.boxes(np.array([0])).tolist() == [[0, 0, 0.5, 1]]


def test_an_existing_directory_is_not_overwritten(grid_records: Path) -> None:
    before = (grid_records / "masks.json").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write(grid_records, [], encoding="png")
    assert (grid_records / "masks.json").read_bytes() == before


def test_an_error_of_the_block_passes_unchanged_and_leaves_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield ("a", {})
        yield ("b", {"core": (tmp_path / "absent").read_bytes()})

    with pytest.raises(FileNotFoundError):
        write(tmp_path / "m", rows(), encoding="png")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_the_end_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*/m: No space left on device"):
        write(tmp_path / "m", [("a", {})], encoding="png")
    assert list(tmp_path.iterdir()) == []


def edit_header(path: Path, **changes: object) -> None:
    header = json.loads((path / "masks.json").read_text())
    header = {key: value for key, value in (header | changes).items() if value != "REMOVE"}
    (path / "masks.json").write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "corm_jax.masks/9"}, "corm_jax.masks/9"),
        ({"schema": "REMOVE"}, "schema None"),
        ({"grid": "REMOVE"}, "lacks grid"),
        ({"frame": "REMOVE", "records": "REMOVE"}, "lacks frame, records"),
        ({"records": 3}, r"file_names.npy"),
        ({"records": "many"}, "many"),
        ({"encoding": "png"}, "encoding 'png'"),
        ({"grid": [3, 2]}, "core.npy"),
        ({"size": [2, 3]}, r"size \[2, 3\] is not"),
        ({"frame": "full"}, "frame full"),
        ({"frame": {"type": "center_crop", "resize": 224, "crop": 256}}, "outside its image"),
        ({"frame": {"type": "center_crop", "resize": "a", "crop": "b"}}, "outside its image"),
    ],
)
def test_reader_refuses_another_header(grid_records: Path, changes: dict, message: str) -> None:
    edit_header(grid_records, **changes)
    with pytest.raises(UserError, match=message) as caught:
        MaskRecords.open(grid_records)
    assert str(grid_records) in str(caught.value)


def test_reader_refuses_what_is_no_header(tmp_path: Path, grid_records: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere holds no mask records"):
        MaskRecords.open(tmp_path / "nowhere")
    (grid_records / "masks.json").write_text("[]")
    with pytest.raises(UserError, match="schema None"):
        MaskRecords.open(grid_records)
    (grid_records / "masks.json").write_text('{"schema": ')
    with pytest.raises(UserError, match=r"masks.json is not valid JSON"):
        MaskRecords.open(grid_records)


@pytest.mark.parametrize("name", ["core.npy", "kinds.npy", "file_names.npy", "spurious.npy"])
@pytest.mark.parametrize("keep", [None, 0, 20, -1])
def test_reader_names_a_missing_or_truncated_array(
    grid_records: Path, name: str, keep: int | None
) -> None:
    path = grid_records / name
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    with pytest.raises(UserError, match=name):
        MaskRecords.open(grid_records)


@pytest.mark.parametrize("place", [8, 10, 11, 40])
def test_reader_names_an_array_with_a_damaged_header(grid_records: Path, place: int) -> None:
    path = grid_records / "core.npy"
    content = bytearray(path.read_bytes())
    content[place : place + 1] = b"("
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"core.npy cannot be read"):
        MaskRecords.open(grid_records)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("core.npy", np.zeros((2, 2, 3), np.float32)),
        ("file_names.npy", np.array(["both", "none"])),
        ("kinds.npy", np.zeros(2, np.int64)),
    ],
)
def test_reader_names_an_array_of_another_dtype(
    grid_records: Path, name: str, array: np.ndarray
) -> None:
    np.save(grid_records / name, array)
    with pytest.raises(UserError, match=f"{name} is {array.dtype}"):
        MaskRecords.open(grid_records)


def test_reader_refuses_two_records_of_an_image(grid_records: Path) -> None:
    np.save(grid_records / "file_names.npy", np.array([b"same", b"same"]))
    message = r"grid/file_names.npy: two records for image 'same', rows 0 and 1"
    with pytest.raises(UserError, match=message):
        MaskRecords.open(grid_records)


@pytest.mark.parametrize(
    ("fixture", "name"),
    [
        ("box_records", "frames.npy"),
        ("png_records", "core_spans.npy"),
        ("png_records", "kinds.npy"),
    ],
)
def test_reader_names_a_truncated_array_of_boxes_or_spans(
    request: pytest.FixtureRequest, fixture: str, name: str
) -> None:
    directory = request.getfixturevalue(fixture)
    path = directory / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=name):
        MaskRecords.open(directory)


def test_reader_refuses_a_box_outside_the_image(box_records: Path) -> None:
    np.save(box_records / "frames.npy", np.array([[0, 0, 1, 1.5]], np.float32))
    with pytest.raises(UserError, match=r"frames.npy: row 0 \('a'\).*outside its image"):
        MaskRecords.open(box_records)


def test_reader_refuses_a_truncated_or_missing_file_of_pngs(png_records: Path) -> None:
    path = png_records / "core.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"core.bin is truncated: row 0 needs bytes 0 to \d+"):
        MaskRecords.open(png_records)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*core.bin"):
        MaskRecords.open(png_records)


@pytest.mark.parametrize(
    ("spans", "row"), [([[0, 0], [0, 0]], 0), ([[-1, 5], [0, 0]], 0), ([[0, 5], [5, 5]], 1)]
)
def test_reader_names_the_row_whose_span_contradicts_the_kinds(
    png_records: Path, spans: list[list[int]], row: int
) -> None:
    np.save(png_records / "core_spans.npy", np.array(spans))
    with pytest.raises(UserError, match=rf"core_spans.npy contradicts kinds.npy in row {row}"):
        MaskRecords.open(png_records)


def test_reader_refuses_a_span_whose_end_overflows(png_records: Path) -> None:
    np.save(png_records / "core_spans.npy", np.array([[5, 2**63 - 1], [0, 0]]))
    with pytest.raises(UserError, match=r"core.bin is truncated: row 0"):
        MaskRecords.open(png_records)


def test_reader_names_both_rows_of_an_image_among_many(tmp_path: Path) -> None:
    names = [f"n{i:02d}" for i in range(50)]
    write(tmp_path / "m", [(name, {}) for name in names], encoding="png")
    names[41] = names[7]
    np.save(tmp_path / "m/file_names.npy", np.array(names, np.bytes_))
    with pytest.raises(UserError, match="two records for image 'n07', rows 7 and 41"):
        MaskRecords.open(tmp_path / "m")


def test_reader_refuses_unknown_kinds(grid_records: Path) -> None:
    np.save(grid_records / "kinds.npy", np.array([3, 4], np.uint8))
    with pytest.raises(UserError, match=r"kinds.npy: row 1 has the unknown kinds 4"):
        MaskRecords.open(grid_records)

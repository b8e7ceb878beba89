"""`masks verify` finds everything that is wrong, and says which file and row."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from png_files import WHITE, png_file

from corm_jax.errors import UserError
from corm_jax.masks.classes import NO_CLASS, class_of
from corm_jax.masks.coverage import coverage
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.verify import verify
from corm_jax.masks.writer import MaskWriter, file_hash

MASKS = "corm_jax.masks"


def sign_again(path: Path) -> None:
    """Makes the checksums fit the files, so that other checks must find what is wrong."""
    header = json.loads((path / "masks.json").read_text())
    header["sha256"] = {f.name: file_hash(f) for f in path.iterdir() if f.name != "masks.json"}
    (path / "masks.json").write_text(json.dumps(header))


def replace_array(path: Path, values: list) -> None:
    old = np.load(path)
    np.save(path, np.array(values, old.dtype))
    sign_again(path.parent)


@pytest.fixture(params=["grid_records", "png_records", "box_records"])
def records(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_what_the_writer_writes_is_good(records: Path) -> None:
    assert verify(records, quick=False) == verify(records, quick=True) == []


def test_no_rows_are_good(tmp_path: Path) -> None:
    with MaskWriter(tmp_path / "m", encoding="png"):
        pass
    assert verify(tmp_path / "m", quick=False) == []
    assert "0 classes" in coverage(MaskRecords.open(tmp_path / "m"))


def test_a_changed_bit_anywhere_is_found(records: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(records.glob("*.npy")) + sorted(records.glob("*.bin")):
        content = path.read_bytes()
        for place in rng.integers(0, len(content), 5):
            damaged = bytearray(content)
            damaged[place] ^= 1 << rng.integers(8)
            path.write_bytes(damaged)
            problems = verify(records, quick=True)
            assert f"{path} has changed since it was written" in problems[0]
        path.write_bytes(content)


def test_everything_is_reported_at_once_with_file_and_row(box_records: Path) -> None:
    with MaskWriter(
        box_records.with_name("m"), encoding="grid", grid=(1, 1), frame={"type": "box"}
    ) as writer:
        for name in "abcd":
            writer.add(name, core=np.ones((1, 1), np.uint8), box=(0, 0, 1, 1))
    path = box_records.with_name("m")
    np.save(path / "file_names.npy", np.array([b"a", b"b", b"a", b"d"]))
    np.save(path / "frames.npy", np.array([[0, 0, 1, 1]] * 3 + [[0, 0, 1, 2]], np.float32))
    np.save(path / "kinds.npy", np.array([1, 0, 9, 1], np.uint8))
    (path / "spurious.npy").unlink()
    (path / "notes.txt").write_text("mine")
    code, output, errors = run(["verify", str(path)], module=MASKS)
    assert (code, output) == (1, "")
    assert errors.splitlines() == [
        f"error: {path} is damaged:",
        f"{path}/notes.txt is no file of mask records; remove it",
        f"{path}/spurious.npy is missing; write the records again",
        *(
            f"{path}/{name} has changed since it was written (another SHA-256 than in masks.json); "
            "copy or write the records again"
            for name in ("file_names.npy", "frames.npy", "kinds.npy")
        ),
        f"{path}/file_names.npy: two records for image 'a', rows 0 and 2",
        f"{path}/kinds.npy: row 2 has the unknown kinds 9; write the records again",
        f"{path}/frames.npy: row 3 ('d'): frame [0.0, 0.0, 1.0, 2.0] lies outside its image "
        "(0 <= top < bottom <= 1, 0 <= left < right <= 1)",
        f"{path}/core.npy: row 1 has a mask, which kinds.npy denies",
    ]


def test_of_many_problems_of_one_kind_the_first_hundred_are_shown(tmp_path: Path) -> None:
    with MaskWriter(tmp_path / "m", encoding="png") as writer:
        for row in range(150):
            writer.add(f"{row:03d}")
    replace_array(tmp_path / "m/file_names.npy", [b"same"] * 150)
    problems = verify(tmp_path / "m", quick=False)
    assert len(problems) == 101
    assert problems[99].endswith("rows 99 and 100")
    assert problems[100] == "... and 49 more of these"


def test_a_good_directory_prints_its_coverage_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with MaskWriter(path, encoding="png") as writer:
        for name in ("n00000001_1.JPEG", "n00000001_2.JPEG", "n00000001_3.JPEG", "dog/7"):
            writer.add(name, core=png_file(WHITE))
        writer.add("n00000002_1.JPEG", spurious=png_file(WHITE, "1"))
        writer.add("ILSVRC2012_val_00000001.JPEG")
    code, output, _ = run(["verify", str(path), "--quick"], module=MASKS)
    assert code == 0
    assert [line.split() for line in output.splitlines()] == [
        ["records", "with", "core", "with", "spurious"],
        ["all", "6", "4", "1"],
        ["a", "class,", "min", "1", "0", "0"],
        ["a", "class,", "median", "1", "1", "0"],
        ["a", "class,", "max", "3", "3", "1"],
        ["3", "classes,", "1", "of", "them", "without", "a", "core", "mask:", "n00000002"],
        ["(no", "class", "in", "the", "name):", "1", "records"],
        f"{path}: 6 records, all good".split(),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n01440764_10026.JPEG", "n01440764"),
        ("train/n01440764/n01440764_10026.JPEG", "n01440764"),
        ("n014407641_1.JPEG", NO_CLASS),
        ("photos/Bengal/17", "Bengal"),
        ("ILSVRC2012_val_00000001.JPEG", NO_CLASS),
        ("", NO_CLASS),
    ],
)
def test_the_class_is_the_wordnet_id_or_the_directory(name: str, expected: str) -> None:
    assert class_of(name) == expected


def test_pictures_of_stats_and_show_may_lie_with_the_records(grid_records: Path) -> None:
    for name in ("stats.png", "show.png", ".DS_Store"):
        (grid_records / name).write_bytes(b"")
    assert verify(grid_records, quick=False) == []


@pytest.mark.parametrize(
    ("sha256", "message"),
    [
        (None, "has no checksums"),
        ({}, "lists no checksum of core.npy"),
        ({"../../etc/passwd": "0"}, "lists '../../etc/passwd', which such records do not have"),
    ],
)
def test_checksums_that_are_missing_or_of_other_files_are_named(
    grid_records: Path, sha256: dict | None, message: str
) -> None:
    header = json.loads((grid_records / "masks.json").read_text())
    (grid_records / "masks.json").write_text(json.dumps(header | {"sha256": sha256}))
    assert message in "\n".join(verify(grid_records, quick=False))


def test_a_truncated_array_is_named_and_does_not_hide_the_rest(png_records: Path) -> None:
    path = png_records / "core_spans.npy"
    path.write_bytes(path.read_bytes()[:-1])
    (png_records / "spurious.bin").write_bytes(b"")
    problems = "\n".join(verify(png_records, quick=False))
    assert f"{path} cannot be read" in problems
    assert f"{png_records}/spurious.bin is truncated: row 1 needs bytes 0 to" in problems


def test_without_a_header_nothing_can_be_said(tmp_path: Path) -> None:
    code, _, errors = run(["verify", str(tmp_path)], module=MASKS)
    assert code == 1
    assert errors == f"error: {tmp_path} holds no mask records (no masks.json there)\n"


@pytest.fixture
def three_pngs(tmp_path: Path) -> Path:
    """Core masks of rows 0, 1 and 2, each of `length` bytes."""
    with MaskWriter(tmp_path / "m", encoding="png") as writer:
        for row in range(3):
            writer.add(f"row{row}", core=png_file(WHITE))
    return tmp_path / "m"


LENGTH = len(png_file(WHITE))


def test_a_damaged_png_is_named_unless_quick(three_pngs: Path) -> None:
    data = bytearray((three_pngs / "core.bin").read_bytes())
    data[LENGTH + 45] ^= 255  # within the pixels of row 1
    (three_pngs / "core.bin").write_bytes(data)
    sign_again(three_pngs)
    [problem] = verify(three_pngs, quick=False)
    expected = f"{three_pngs}/core.bin: the mask of row 1, {LENGTH} bytes from {LENGTH}, is a damag"
    assert problem.startswith(expected)
    assert verify(three_pngs, quick=True) == []


@pytest.mark.parametrize("mode", ["RGB", "P", "I;16"])
def test_a_png_that_is_not_grey_is_named(three_pngs: Path, mode: str) -> None:
    png = png_file(WHITE, mode)
    (three_pngs / "core.bin").write_bytes(png * 3)
    replace_array(three_pngs / "core_spans.npy", [[i * len(png), len(png)] for i in range(3)])
    problems = verify(three_pngs, quick=False)
    assert len(problems) == 3
    assert all("convert it to 8-bit grey" in problem for problem in problems)


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        (
            [0, 0, 2],
            ["the mask of row 1 overlaps", f"no row has bytes {LENGTH} to"],
        ),
        ([0, 1, 1], ["row 2 overlaps", f"no row has the last {LENGTH} bytes"]),
        ([1, 1, 2], [f"no row has bytes 0 to {LENGTH}, before row 0", "row 1 overlaps"]),
    ],
)
def test_spans_that_overlap_or_leave_gaps_are_named(
    three_pngs: Path, starts: list[int], expected: list[str]
) -> None:
    replace_array(three_pngs / "core_spans.npy", [[s * LENGTH, LENGTH] for s in starts])
    problems = verify(three_pngs, quick=True)
    assert len(problems) == 2
    for problem, part in zip(problems, expected, strict=True):
        assert part in problem


def test_rows_in_another_order_than_their_pngs_are_good(three_pngs: Path) -> None:
    replace_array(three_pngs / "core_spans.npy", [[s * LENGTH, LENGTH] for s in (2, 0, 1)])
    assert verify(three_pngs, quick=False) == []


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    spans=st.lists(
        st.tuples(*[st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 3 * LENGTH)] * 2),
        min_size=3,
        max_size=3,
    )
)
def test_any_spans_are_either_read_or_reported(three_pngs: Path, spans: list) -> None:
    replace_array(three_pngs / "core_spans.npy", spans)
    problems = verify(three_pngs, quick=False)
    covered = sorted(spans) == [(0, LENGTH), (LENGTH, LENGTH), (2 * LENGTH, LENGTH)]
    assert (problems == []) == covered
    assert openable(three_pngs) or problems


def openable(path: Path) -> bool:
    try:
        MaskRecords.open(path)
    except UserError:
        return False
    return True

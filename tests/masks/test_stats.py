"""`masks stats`: what it counts and measures, by hand."""

from pathlib import Path

import numpy as np
import pytest
from command import run
from PIL import Image
from png_files import WHITE, png_file

from corm_jax.errors import UserError
from corm_jax.masks import stats
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.writer import MaskWriter


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Core shares 0, 51/255 and (255 + 0) / 2 / 255, a spurious share of 1; two classes."""
    path = tmp_path / "m"
    with MaskWriter(path, encoding="grid", grid=(1, 2), source="by hand") as writer:
        writer.add("cat/1", core=np.array([[0, 0]], np.uint8))
        writer.add("cat/2", core=np.array([[51, 51]], np.uint8))
        writer.add("cat/3")
        writer.add(
            "dog/1",
            core=np.array([[255, 0]], np.uint8),
            spurious=np.array([[255, 255]], np.uint8),
        )
        writer.add("9.jpg", spurious=np.array([[255, 255]], np.uint8))
    return path


def test_counts_classes_and_shares_of_grids(masks: Path) -> None:
    measured = stats.measure(MaskRecords.open(masks))
    assert measured.counts == {"core": 3, "spurious": 2, "both": 1, "none": 1}
    assert measured.classes.tolist() == [3, 1]
    np.testing.assert_allclose(measured.shares["core"], [0, 0.2, 0.5])
    np.testing.assert_allclose(measured.shares["spurious"], [1, 1])


def test_grids_are_measured_in_parts(masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "GRIDS", 2)
    measured = stats.measure(MaskRecords.open(masks))
    np.testing.assert_allclose(measured.shares["core"], [0, 0.2, 0.5])


def test_shares_of_png_masks_of_any_depth(tmp_path: Path) -> None:
    half = np.array([[0, 255], [255, 0]], np.uint8)
    with MaskWriter(tmp_path / "m", encoding="png") as writer:
        writer.add("bits", core=png_file(half, "1"))
        writer.add("bytes", core=png_file(half // 5))
        writer.add("none")
    measured = stats.measure(MaskRecords.open(tmp_path / "m"))
    np.testing.assert_allclose(measured.shares["core"], [0.5, 0.1])
    assert measured.shares["spurious"].tolist() == []


def test_the_command_prints_the_table_and_draws_beside_the_records(masks: Path) -> None:
    code, output, errors = run(["stats", str(masks)], module="corm_jax.masks")
    assert (code, errors) == (0, "")
    lines = [line.split() for line in output.splitlines()]
    assert lines[2:6] == [["core", "3"], ["spurious", "2"], ["both", "1"], ["none", "1"]]
    assert [
        "classes:",
        "2;",
        "records",
        "a",
        "class:",
        "min",
        "1,",
        "median",
        "2,",
        "max",
        "3",
    ] in lines
    # Percentiles of 0, 0.2, 0.5 are linear between them: 10 % is 0.04, 60 % 0.26.
    core = "core 3 0.23 0.04 0.08 0.12 0.16 0.20 0.26 0.32 0.38 0.44"
    assert core.split() in lines
    assert ["spurious", "2", *["1.00"] * 10] in lines
    assert "drawn at random" not in output
    assert f"picture: {masks}/stats.png" in output
    with Image.open(masks / "stats.png") as picture:
        assert picture.width > picture.height > 300


def test_a_sample_of_many_pngs_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "SAMPLE", 4)
    with MaskWriter(tmp_path / "m", encoding="png") as writer:
        for row in range(9):
            masks = {"core": png_file(WHITE), "spurious": None if row > 3 else png_file(WHITE)}
            writer.add(str(row), **masks)
    records = MaskRecords.open(tmp_path / "m")
    measured = stats.measure(records)
    assert {kind: len(shares) for kind, shares in measured.shares.items()} == {
        "core": 4,
        "spurious": 4,
    }
    text = stats.format_statistics(records, measured)
    assert text.endswith("estimated from 4 masks drawn at random: core")


@pytest.mark.parametrize("fixture", ["grid_records", "png_records", "box_records"])
def test_pictures_are_drawn_of_any_records(
    request: pytest.FixtureRequest, fixture: str, tmp_path: Path
) -> None:
    records = MaskRecords.open(request.getfixturevalue(fixture))
    output = tmp_path / "new/$x_{.png"
    stats.draw(output, stats.measure(records), title="$x_{")
    assert output.stat().st_size > 1000


def test_no_rows_can_be_measured(tmp_path: Path) -> None:
    with MaskWriter(tmp_path / "m", encoding="grid", grid=(1, 1)):
        pass
    records = MaskRecords.open(tmp_path / "m")
    measured = stats.measure(records)
    assert measured.counts["none"] == 0
    assert "no class" in stats.format_statistics(records, measured)
    stats.draw(tmp_path / "stats.png", measured, title="nothing")


def test_a_damaged_png_is_named_and_no_picture_is_left(png_records: Path) -> None:
    data = (png_records / "core.bin").read_bytes()
    (png_records / "core.bin").write_bytes(data[:40] + bytes(len(data) - 40))
    with pytest.raises(UserError, match="record of 'core': core mask is a damaged PNG"):
        stats.measure(MaskRecords.open(png_records))
    assert not (png_records / "stats.png").exists()

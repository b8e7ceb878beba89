"""The importer of Salient ImageNet's released archive."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from salient import (
    GOLDFISH,
    SHARK,
    TENCH,
    VOTES,
    annotation_rows,
    halves,
    save_mask,
    write_annotations,
    write_archive,
    write_names,
)
from sources import open_format, read_format

from corm_jax.errors import UserError
from corm_jax.masks.sources import salient_imagenet
from corm_jax.masks.sources.source import Row, Source


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "masks")


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "answers.csv", annotation_rows())


@pytest.fixture
def opened(archive: Path, annotations: Path) -> Callable[..., Source]:
    def open_source(*flags: str) -> Source:
        return open_format(salient_imagenet, archive, f"--annotations={annotations}", *flags)

    return open_source


def levels(mask: np.ndarray | None) -> tuple[int, int] | None:
    """Returns the grey levels of a mask's halves, each of which must be uniform."""
    if mask is None:
        return None
    left, right = int(mask[0, 0]), int(mask[0, -1])
    np.testing.assert_array_equal(mask, halves(left, right))
    assert mask.dtype == np.uint8
    return left, right


def summary(rows: dict[str, Row]) -> dict[str, tuple]:
    return {name: (levels(row.core), levels(row.spurious)) for name, row in rows.items()}


def test_masks_are_maxima_over_the_core_and_over_the_spurious_features(
    archive: Path, annotations: Path
) -> None:
    rows = read_format(salient_imagenet, archive, f"--annotations={annotations}")
    assert summary(rows) == {
        f"{TENCH}_1.JPEG": ((200, 90), (0, 255)),  # core: max of (200, 0) and (50, 90)
        f"{TENCH}_2.JPEG": ((10, 20), None),
        f"{TENCH}_4.JPEG": ((255, 255), None),
        f"{TENCH}_3.JPEG": (None, (30, 40)),
        f"{GOLDFISH}_7.JPEG": (None, (0, 70)),
    }


def test_votes_decide_which_features_are_spurious(archive: Path, annotations: Path) -> None:
    flags = (f"--annotations={annotations}", "--votes=2")  # feature 12 has two, too
    rows = read_format(salient_imagenet, archive, *flags)
    assert summary(rows)[f"{TENCH}_1.JPEG"] == ((200, 0), (50, 255))
    rows = read_format(salient_imagenet, archive, flags[0], "--votes=5")
    assert summary(rows)[f"{TENCH}_1.JPEG"] == ((200, 255), None)


def test_frame_number_of_rows_and_what_gives_none_are_known(opened: Callable[..., Source]) -> None:
    source = opened()
    assert source.frame == {"type": "center_crop", "resize": 256, "crop": 224}
    assert len(source) == 5
    assert source.skipped == {"annotated features that are not in the archive": 1}  # the shark's
    assert len(list(source.rows())) == len(list(source.rows())) == 5
    assert source.skipped == {"annotated features that are not in the archive": 1}


def test_rows_hold_whatever_jpeg_quality_gives(archive: Path, annotations: Path) -> None:
    path = archive / TENCH / "feature_11" / f"{TENCH}_2.JPEG"
    noise = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    Image.fromarray(noise).save(path, quality=30)
    rows = read_format(salient_imagenet, archive, f"--annotations={annotations}")
    np.testing.assert_array_equal(rows[f"{TENCH}_2.JPEG"].core, np.asarray(Image.open(path)))


def test_a_missing_mask_is_named_or_left_out(archive: Path, opened: Callable[..., Source]) -> None:
    lost = [
        archive / TENCH / "feature_12" / f"{TENCH}_1.JPEG",
        archive / TENCH / "feature_11" / f"{TENCH}_2.JPEG",
    ]
    for path in lost:
        path.unlink()
    with pytest.raises(UserError, match=f"{re.escape(str(lost[1]))} is missing.*--missing=skip"):
        opened()
    source = opened("--missing=skip")
    rows = {row.file_name: row for row in source.rows()}
    assert len(rows) == len(source) == 4
    assert summary(rows)[f"{TENCH}_1.JPEG"] == ((200, 0), (0, 255))
    assert f"{TENCH}_2.JPEG" not in rows
    assert source.skipped["listed masks that are missing"] == 2


def test_a_missing_directory_of_a_feature_is_missing_masks(
    archive: Path, opened: Callable[..., Source]
) -> None:
    (archive / GOLDFISH / "feature_11" / f"{GOLDFISH}_7.JPEG").unlink()
    (archive / GOLDFISH / "feature_11").rmdir()
    with pytest.raises(UserError, match=f"{GOLDFISH}_7.JPEG is missing"):
        opened()
    assert len(opened("--missing=skip")) == 4


def not_jpeg(path: Path) -> None:
    path.write_bytes(b"not a picture")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def a_png(path: Path) -> None:
    save_mask(path, halves(0, 1), form="PNG")


def colour(path: Path) -> None:
    save_mask(path, halves(0, 1), mode="RGB")


def other_size(path: Path) -> None:
    save_mask(path, halves(0, 1)[:, 1:])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (not_jpeg, "is not a readable JPEG file"),
        (truncated, "is not a readable JPEG file"),
        (a_png, "is not a readable JPEG file"),
        (colour, r"is no grey image \(its mode is RGB\)"),
        (other_size, "is 223 x 224 pixels, not 224 x 224"),
    ],
)
def test_a_mask_that_is_no_grey_jpeg_of_the_frames_size_is_named(
    archive: Path, opened: Callable[..., Source], spoil: Callable[[Path], None], message: str
) -> None:
    path = archive / TENCH / "feature_12" / f"{TENCH}_1.JPEG"
    spoil(path)
    rows = opened("--missing=skip").rows()  # there is no leaving out of damaged masks
    with pytest.raises(UserError, match=f"{re.escape(str(path))} {message}"):
        list(rows)


def test_a_class_without_its_list_is_named(archive: Path, opened: Callable[..., Source]) -> None:
    (archive / TENCH / "image_names_map.csv").unlink()
    with pytest.raises(UserError, match=f"cannot read .*{TENCH}/image_names_map.csv: No such file"):
        opened()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("11,12,99\na,b,c\n", f"line 1: feature 99 of {TENCH} has no answers in .*answers.csv"),
        ("11,name\na,b\n", "line 1: column 'name' is not the index of a feature"),
        (",11\n0,a\n", "line 1: column '' is not the index of a feature"),
        ("11,11\na,b\n", "line 1 has two columns of one feature"),
        ("11,12\na,b\na,b,c\n", "line 3 has more cells than the header"),
        ("11,12\na,b\na,c\n", "line 3: feature 11 has 'a' twice"),
        ("11\n../../x\n", "line 2: feature 11 has '../../x' but is no image name"),
        ("11\n/etc/x\n", "line 2: feature 11 has '/etc/x' but is no image name"),
        ("11\n..\n", "line 2: feature 11 has '..' but is no image name"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(
    archive: Path, opened: Callable[..., Source], text: str, message: str
) -> None:
    path = archive / TENCH / "image_names_map.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} {message}"):
        opened("--missing=skip")


def test_an_image_under_two_classes_is_named(archive: Path, opened: Callable[..., Source]) -> None:
    save_mask(archive / GOLDFISH / "feature_11" / f"{TENCH}_2.JPEG", halves(1, 2))
    write_names(archive / GOLDFISH / "image_names_map.csv", {11: [f"{TENCH}_2"]})
    with pytest.raises(
        UserError, match=f"{GOLDFISH}/.*image '{TENCH}_2' stands under class {TENCH} as well"
    ):
        opened()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').mkdir('RAN')", "line 1 is no dict literal"),
        ("{0: __import__('os').mkdir('RAN')}", "line 1 is not a class index with its WordNet ID"),
        ("{0: 'n01440764',\n 1: open('x')}", "line 2 is not a class index with its WordNet ID"),
        ("wordnet_dict = {0: 'n01440764'}", "line 1 is no dict literal"),
        ("{0: 'n01440764',\n 1 'n01443537'}", "line [12] is no dict literal"),
        ("{**{0: 'n01440764'}}", "line 1 is not a class index"),
        ("{True: 'n01440764'}", "line 1 is not a class index"),
        ("{0: '../../secret'}", "line 1 is not a class index"),
        ("{0: 'n01440764',\n\n 0: 'n01443537'}", "line 3 names class 0: 'n01443537' twice"),
        ("{0: 'n01440764', 1: 'n01440764'}", "line 1 names class 1: 'n01440764' twice"),
        ("['n01440764']", "line 1 is no dict literal"),
        ("", "is no dict literal"),
        ("\0", "is no dict literal"),
        ("(" * 5000, "is no dict literal"),
    ],
)
def test_a_dict_that_is_no_literal_is_refused_and_never_run(
    archive: Path,
    opened: Callable[..., Source],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    message: str,
) -> None:
    monkeypatch.chdir(archive)
    (archive / "wordnet_dict.py").write_text(text)
    with pytest.raises(UserError, match=rf"wordnet_dict\.py .*{message}"):
        opened()
    assert not (archive / "RAN").exists()


def test_a_missing_or_unreadable_dict_is_named(
    archive: Path, opened: Callable[..., Source]
) -> None:
    (archive / "wordnet_dict.py").write_bytes(b"{0: '\xff'}")
    with pytest.raises(UserError, match=r"wordnet_dict\.py is no dict literal"):
        opened()
    (archive / "wordnet_dict.py").unlink()
    with pytest.raises(UserError, match=r"cannot read .*wordnet_dict\.py: No such file"):
        opened()


def test_a_class_that_the_dict_does_not_name_is_refused(
    archive: Path, opened: Callable[..., Source]
) -> None:
    (archive / "wordnet_dict.py").write_text(repr({0: TENCH, 2: SHARK}))
    with pytest.raises(UserError, match=f"{GOLDFISH} is of a class that wordnet_dict.py does not"):
        opened()


def test_annotations_of_other_classes_are_refused(
    archive: Path, opened: Callable[..., Source]
) -> None:
    (archive / "wordnet_dict.py").write_text(repr({0: TENCH, 1: SHARK, 2: GOLDFISH}))
    with pytest.raises(
        UserError,
        match=f"answers.csv line 17: class 1 is {GOLDFISH}, wordnet_dict.py has {SHARK}",
    ):
        opened()


def test_annotations_may_cover_more_classes_than_the_archive(
    archive: Path, tmp_path: Path, opened: Callable[..., Source]
) -> None:
    more = {**VOTES, (SHARK, 31): (0, 0, 5), (SHARK, 32): (5, 0, 0)}
    write_annotations(tmp_path / "answers.csv", annotation_rows(more))
    assert opened().skipped == {"annotated features that are not in the archive": 3}

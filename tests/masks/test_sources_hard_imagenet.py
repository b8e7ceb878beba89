from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import open_format, read_format

from corm_jax.errors import UserError
from corm_jax.masks.records import FULL_FRAME
from corm_jax.masks.sources import hard_imagenet

TRAIN = "train/n02422106_n02422106_1234.JPEG"
VAL = "val/n02422106_ILSVRC2012_val_00000001.JPEG"


def square() -> np.ndarray:
    mask = np.zeros((40, 48), np.uint8)
    mask[11:29, 13:31] = 255
    return mask


def save(path: Path, pixels: np.ndarray, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


def test_names_are_those_of_the_images(tmp_path: Path) -> None:
    save(tmp_path / TRAIN, square())
    save(tmp_path / VAL, square())
    save(tmp_path / "val/n03535780_ILSVRC2012_val_00000002.png", square())
    save(tmp_path / "meta/picture.png", square())
    source = open_format(hard_imagenet, tmp_path)
    assert [row.file_name for row in source.rows()] == [
        "n02422106_1234.JPEG",
        "ILSVRC2012_val_00000001.JPEG",
        "ILSVRC2012_val_00000002.JPEG",
    ]
    assert (len(source), source.frame, source.skipped) == (3, FULL_FRAME, {})


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", [TRAIN, TRAIN.replace("JPEG", "png")])
def test_masks_are_black_and_white_in_spite_of_jpeg(tmp_path: Path, name: str, mode: str) -> None:
    save(tmp_path / name, square(), mode)
    row = read_format(hard_imagenet, tmp_path)["n02422106_1234.JPEG"]
    assert row.core.dtype == np.uint8
    assert np.array_equal(row.core, square())
    assert row.spurious is None
    if name == TRAIN:  # or else the test shows nothing
        assert len(np.unique(np.asarray(Image.open(tmp_path / name)))) > 2


def test_object_begins_at_half_of_the_brightness(tmp_path: Path) -> None:
    save(tmp_path / "val/n02422106_n02422106_1.png", np.array([[0, 1, 127, 128, 255]], np.uint8))
    core = read_format(hard_imagenet, tmp_path)["n02422106_1.JPEG"].core
    assert core.tolist() == [[0, 0, 0, 255, 255]]


def test_masks_without_object_are_left_out_and_counted(tmp_path: Path) -> None:
    save(tmp_path / TRAIN, np.full((4, 4), 127, np.uint8))
    save(tmp_path / VAL, square())
    source = open_format(hard_imagenet, tmp_path)
    assert [row.file_name for row in source.rows()] == ["ILSVRC2012_val_00000001.JPEG"]
    assert source.skipped == {"masks without a pixel of 128 or more": 1}


@pytest.mark.parametrize("suffix", ["JPEG", "png"])
def test_colours_are_refused(tmp_path: Path, suffix: str) -> None:
    picture = np.stack([square(), square(), square() // 2], axis=-1)
    save(tmp_path / TRAIN.replace("JPEG", suffix), picture, "RGB")
    with pytest.raises(UserError, match=rf"1234\.{suffix} is in colours"):
        read_format(hard_imagenet, tmp_path)


def test_palettes_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / TRAIN.replace("JPEG", "png")
    save(path, square(), "P")
    with pytest.raises(UserError, match=r"1234\.png is a 8-bit palette PNG"):
        read_format(hard_imagenet, tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"1234\.png"):
        read_format(hard_imagenet, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "n02422106_1234.JPEG",  # an image's name
        "n02422106_n02099601_1234.JPEG",  # of another class
        "n02422106_ILSVRC2012_val_1.JPEG",
        "n02422106_n02422106_1234.gif",
        "ILSVRC2012_val_00000001.JPEG",
        "notes.txt",
    ],
)
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path / VAL, square())
    (tmp_path / "val" / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"val/{name} is not named <wnid>_<image file name>"):
        open_format(hard_imagenet, tmp_path)


@pytest.mark.parametrize("other", [TRAIN.replace("train", "val"), TRAIN.replace("JPEG", "png")])
def test_two_masks_of_one_image_are_refused(tmp_path: Path, other: str) -> None:
    for name in (TRAIN, other):
        save(tmp_path / name, square())
    with pytest.raises(UserError, match=r"masks of one image, n02422106_1234\.JPEG"):
        open_format(hard_imagenet, tmp_path)


def test_a_directory_without_splits_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "n02422106_n02422106_1234.png", square())
    with pytest.raises(UserError, match=r"holds no masks in train/ or val/"):
        open_format(hard_imagenet, tmp_path)

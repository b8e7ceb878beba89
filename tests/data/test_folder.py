"""A folder of images and masks: its layout, its split, its masks."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corm_jax.config import base_config
from corm_jax.data.dataset import Dataset, evaluation_loader, open_dataset
from corm_jax.data.folder import FolderImages, open_folder
from corm_jax.errors import UserError
from corm_jax.protocols.views import core_region
from corm_jax.steps import expand_batch

MakeFolder = Callable[..., Path]


def names(images: FolderImages) -> set[str]:
    return {name.decode() for name in images.file_names}


def open_config(folder: Path, **data: object) -> Dataset:
    config = base_config("erm")
    config.data.source, config.data.folder = "folder", str(folder)
    config.data.update(data)
    return open_dataset(config)


def test_every_image_is_in_exactly_one_split(make_folder: MakeFolder) -> None:
    folder = make_folder(classes=3, images=10)
    train, validation, masks = open_folder(folder, 0.2)
    assert names(train) | names(validation) == {
        f"class{c}/{i}" for c in range(3) for i in range(10)
    }
    assert not names(train) & names(validation)
    assert len(masks.file_names) == 30
    for split, count in ((train, 8), (validation, 2)):
        labels = [label for _, label in split.read(range(len(split)))]
        assert np.bincount(labels).tolist() == [count] * 3
        for index, label in enumerate(labels):
            assert split.file_names[index].startswith(split.class_names[label].encode())
    assert train.class_names == validation.class_names == ("class0", "class1", "class2")


def test_another_class_changes_no_split_of_the_others(make_folder: MakeFolder) -> None:
    folder = make_folder(classes=3)
    before = names(open_folder(folder, 0.3)[1])
    (folder / "images/class1").rename(folder / "images/aardvark")
    (folder / "masks/class1").rename(folder / "masks/aardvark")
    after = names(open_folder(folder, 0.3)[1])
    assert {n for n in after if "aardvark" not in n} == {n for n in before if "class1" not in n}


def test_the_split_is_not_the_order_of_the_names(make_folder: MakeFolder) -> None:
    _, validation, _ = open_folder(make_folder(images=30), 0.5)
    assert 3 < sum(int(name.split("/")[1]) < 15 for name in names(validation)) < 27


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.99, 3)])
def test_both_splits_have_an_image_of_each_class(
    make_folder: MakeFolder, share: float, count: int
) -> None:
    _, validation, _ = open_folder(make_folder(images=4), share)
    assert len(validation) == 2 * count


def test_suffixes_may_differ_and_hidden_files_are_no_images(make_folder: MakeFolder) -> None:
    folder = make_folder(images=3)
    (folder / "images/class0/0.jpg").rename(folder / "images/class0/0.JPEG")
    Image.new("RGB", (32, 40)).save(folder / "images/class0/1.jpg", "PNG")
    (folder / "images/class0/1.jpg").rename(folder / "images/class0/1.png")
    (folder / "images/class0/.DS_Store").touch()
    (folder / "images/.cache").mkdir()
    train, validation, _ = open_folder(folder, 0.3)
    assert len(train) + len(validation) == 6


def test_other_files_are_ignored_aloud(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder(images=3)
    for path in (folder / "images/class0/9.webp", folder / "masks/class0/0.jpg"):
        path.touch()
    with caplog.at_level(logging.WARNING):
        open_folder(folder, 0.3)
    assert f"1 files in {folder}/images/class0 are ignored, such as 9.webp" in caplog.text
    assert f"1 files in {folder}/masks/class0 are ignored, such as 0.jpg" in caplog.text


def test_names_of_any_characters_work(make_folder: MakeFolder) -> None:
    folder = make_folder(images=3)
    odd = ["a b", "ü", "x.y", os.fsdecode(b"latin\xe9")]
    for name in odd:
        Image.new("RGB", (32, 40)).save(folder / f"images/class0/{name}.png")
        Image.new("L", (32, 40), 255).save(folder / f"masks/class0/{name}.png")
    dataset = open_config(folder)
    assert dataset.counts["images_without_record"] == 0
    found = [*dataset.train.images.file_names, *dataset.validation.images.file_names]
    assert {os.fsencode(f"class0/{name}") for name in odd} < set(found)


@pytest.mark.parametrize("folder", ["", "/nowhere/at/all"])
def test_a_folder_that_is_not_there_is_named_with_the_layout(folder: str) -> None:
    with pytest.raises(UserError, match=r"images/<class>/<id>"):
        open_config(Path(folder) if folder else "")


def test_a_layout_without_classes_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder(classes=1)
    with pytest.raises(UserError, match=r"images holds 1 classes.*images/<class>/<id>"):
        open_folder(folder, 0.2)
    (folder / "images/class0").rename(folder / "images0")
    with pytest.raises(UserError, match="images holds 0 classes"):
        open_folder(folder, 0.2)


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_of_too_few_images_is_named(make_folder: MakeFolder, left: int) -> None:
    folder = make_folder(images=3)
    for path in sorted((folder / "images/class1").iterdir())[left:]:
        path.unlink()
    with pytest.raises(UserError, match=f"class1 holds {left} images; a class needs 2"):
        open_folder(folder, 0.2)


def test_two_images_of_one_id_are_named(make_folder: MakeFolder) -> None:
    folder = make_folder(images=3)
    (folder / "images/class1/2.png").touch()
    with pytest.raises(UserError, match=r"class1/2.jpg and .*class1/2.png have the same id"):
        open_folder(folder, 0.2)


def test_missing_masks_are_allowed_and_counted(make_folder: MakeFolder) -> None:
    folder = make_folder(images=10)
    for name in ("class0/3", "class1/4"):
        (folder / f"masks/{name}.png").unlink()
    dataset = open_config(folder)
    assert dataset.counts == {
        "images": 20,
        "images_without_record": 2,
        "records_without_image": 0,
    }
    for split in (dataset.train, dataset.validation):
        missing = names(split.images) & {"class0/3", "class1/4"}
        assert {split.images.file_names[i].decode() for i in np.flatnonzero(~split.has_mask)} == (
            missing
        )


def test_a_folder_without_any_mask_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "masks").rename(folder / "mask")
    with pytest.raises(UserError, match="no image of the train split has a core mask"):
        open_config(folder)


def test_masks_of_no_image_count_against_the_configured_share(make_folder: MakeFolder) -> None:
    folder = make_folder(images=10)
    Image.new("L", (32, 40)).save(folder / "masks/class1/stray.png")
    with pytest.raises(UserError, match=r"1 of 21 mask records.*'class1/stray'"):
        open_config(folder)
    assert open_config(folder, max_unmatched_records=0.05).counts["records_without_image"] == 1


def test_a_mask_of_another_aspect_is_named_before_anything_runs(make_folder: MakeFolder) -> None:
    folder = make_folder()
    Image.new("L", (40, 32)).save(folder / "masks/class1/4.png")
    with pytest.raises(UserError, match=r"mask .*class1/4.png is 40x32 pixels, image .*4.jpg is"):
        open_folder(folder, 0.2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16"])
def test_a_mask_that_is_not_grey_is_named_with_the_way_out(
    make_folder: MakeFolder, mode: str
) -> None:
    folder = make_folder()
    Image.new("L", (32, 40), 255).convert(mode).save(folder / "masks/class1/4.png")
    with pytest.raises(UserError, match=r"mask .*class1/4.png is .*convert it to 8-bit grey"):
        open_folder(folder, 0.2)


@pytest.mark.parametrize("value", [1, 3])
def test_masks_of_label_numbers_are_refused(make_folder: MakeFolder, value: int) -> None:
    folder = make_folder()
    for path in (folder / "masks").rglob("*.png"):
        Image.new("L", (32, 40), value).save(path)
    with pytest.raises(UserError, match=f"is {value} of 255; write 255 on the object"):
        open_folder(folder, 0.2)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 this is a JPEG, rather"])
def test_a_mask_that_is_no_png_is_named(make_folder: MakeFolder, content: bytes) -> None:
    folder = make_folder()
    (folder / "masks/class1/4.png").write_bytes(content)
    with pytest.raises(UserError, match=r"class1/4.png is not a readable PNG"):
        open_folder(folder, 0.2)


def test_pets_load_whole_with_one_empty_mask(pets: Path) -> None:
    dataset = open_config(pets, image_size=64)
    assert len(dataset.class_names) == 3
    assert dataset.counts == {
        "images": 600,
        "images_without_record": 0,
        "records_without_image": 0,
    }
    config = base_config("erm")
    config.eval.batch_size = 100
    present = labels = 0
    for split in (dataset.train, dataset.validation):
        loader, count = evaluation_loader(config, split, (0, 1))
        for batch in map(expand_batch, loader.batches(0, count)):
            real = batch["weight"]
            assert (batch["has_mask"] == 1).all()
            assert (batch["mask_valid"] == 1).all()
            present += float((core_region(batch["core_mask"])[1] * real).sum())
            labels += np.bincount(batch["label"], weights=real, minlength=3)
    assert present == 599
    assert labels.tolist() == [200, 200, 200]

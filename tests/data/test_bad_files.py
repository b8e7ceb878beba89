"""Damaged files: named, and skipped or fatal as the config says."""

import dataclasses
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from corm_jax.config import base_config
from corm_jax.data.dataset import Dataset, evaluation_loader, open_dataset, training_loader
from corm_jax.data.pipeline import Loader
from corm_jax.errors import UserError
from corm_jax.masks.writer import MaskWriter


@pytest.fixture
def config(make_folder: Callable[..., Path]) -> ConfigDict:
    config = base_config("erm")
    config.data.source, config.data.folder = "folder", str(make_folder(images=5))
    config.data.image_size, config.train.batch_size, config.eval.batch_size = 16, 8, 8
    config.data.bad_images = "skip"
    return config


def training_paths(dataset: Dataset) -> list[Path]:
    images = dataset.train.images
    return [Path(images.describe(index)) for index in range(len(images))]


def grid_masks(config: ConfigDict, path: Path) -> None:
    """Replaces the folder's masks by a record of a grid for each image."""
    with MaskWriter(path, encoding="grid", grid=(2, 2)) as writer:
        for file in sorted(Path(config.data.folder, "images").rglob("*.jpg")):
            name = f"{file.parent.name}/{file.stem}"
            writer.add(name, core=np.full((2, 2), 255, np.uint8))
    config.data.masks = str(path)


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    pixels = np.zeros((40, 32, 3), np.uint8)
    if how == "GIF":
        Image.fromarray(pixels).save(path, "GIF")
        return
    damaged = {
        "truncated": content[: len(content) // 3],
        "empty": b"",
        "text": b"this is no image, but it is longer than a header",
        "header only": b"\x89PNG\r\n\x1a\n",
        "garbage PNG": b"\x89PNG\r\n\x1a\n" + b"\xfe" * 500,
        "truncated PNG": as_png(np.random.default_rng(0).integers(0, 256, (40, 32, 3), np.uint8)),
    }
    damaged["truncated PNG"] = damaged["truncated PNG"][:1000]
    path.write_bytes(damaged[how])


WAYS = ["truncated", "empty", "text", "header only", "garbage PNG", "truncated PNG", "GIF"]


@pytest.mark.parametrize("how", WAYS)
def test_a_bad_image_is_skipped_and_named(
    config: ConfigDict, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    config.data.crop_area_min = 1.0  # so that no crop spares what is missing
    dataset = open_dataset(config)
    path = training_paths(dataset)[3]
    before = list(training_loader(config, dataset.train, (0, 1)).batches(0, 3))
    damage(path, how)
    loader = training_loader(config, open_dataset(config).train, (0, 1))
    with caplog.at_level(logging.WARNING):
        after = list(loader.batches(0, 3))
    assert loader.skipped == {3: str(path)}
    assert caplog.text.count(f"skipping {path}") == 1
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new["id"], old["id"])
        np.testing.assert_array_equal(new["label"], old["label"])
        bad = new["weight"] == 0
        assert bad.sum() == 1
        assert new["has_mask"][bad] == 0
        assert not new["core_mask"][bad].any()
        np.testing.assert_array_equal(new["image"][~bad], old["image"][~bad])
        np.testing.assert_array_equal(new["core_mask"][~bad], old["core_mask"][~bad])
        np.testing.assert_array_equal(new["weight"][~bad], old["weight"][~bad])


@pytest.mark.parametrize("how", ["truncated", "empty"])
def test_a_bad_image_is_fatal_and_named_if_so_configured(config: ConfigDict, how: str) -> None:
    config.data.bad_images = "error"
    config.data.crop_area_min = 1.0
    dataset = open_dataset(config)
    path = training_paths(dataset)[5]
    damage(path, how)
    loader = training_loader(config, dataset.train, (0, 1))
    with pytest.raises(UserError, match=f"{path} cannot be decoded .*bad_images=skip"):
        list(loader.batches(0, 2))


def test_a_bad_image_with_a_grid_mask_is_skipped(config: ConfigDict, tmp_path: Path) -> None:
    grid_masks(config, tmp_path / "grids")
    dataset = open_dataset(config)
    damage(training_paths(dataset)[0], "empty")
    loader = training_loader(config, dataset.train, (0, 1))
    (batch,) = loader.batches(0, 1)
    bad = batch["weight"] == 0
    assert bad.sum() == 1
    assert batch["has_mask"].tolist() == (~bad).tolist()
    assert not batch["core_grid"][bad].any()
    assert (batch["core_grid"][~bad] == 255).all()


def test_many_bad_images_are_all_skipped(config: ConfigDict) -> None:
    dataset = open_dataset(config)
    for path in training_paths(dataset)[:4]:
        damage(path, "empty")
    loader = training_loader(config, dataset.train, (0, 1))
    weights = [batch["weight"].sum() for batch in loader.batches(0, 2)]
    assert sorted(loader.skipped) == [0, 1, 2, 3]
    assert weights == [4, 4]


def test_evaluation_skips_bad_images_as_well(config: ConfigDict) -> None:
    dataset = open_dataset(config)
    damage(training_paths(dataset)[2], "empty")
    loader, count = evaluation_loader(config, dataset.train, (0, 1))
    assert sum(batch["weight"].sum() for batch in loader.batches(0, count)) == 7


def test_a_resumed_run_judges_a_half_damaged_image_as_the_whole_run_did(
    config: ConfigDict,
) -> None:
    """Small crops spare the damage in some epochs: what was skipped before must not matter."""
    config.data.crop_area_min, config.data.crop_area_max = 0.05, 0.15
    dataset = open_dataset(config)
    path = training_paths(dataset)[3]
    noise = np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def loader() -> Loader:
        return training_loader(config, dataset.train, (0, 1))

    whole = [batch["weight"].sum() for batch in loader().batches(0, 12)]
    assert set(whole) == {7.0, 8.0}
    for start in range(1, 12, 3):
        resumed = [batch["weight"].sum() for batch in loader().batches(start, 12)]
        assert resumed == whole[start:]
        remembering = dataclasses.replace(loader(), skipped={3: str(path)})
        assert [b["weight"].sum() for b in remembering.batches(start, 12)] == whole[start:]


def test_a_png_named_jpg_is_read(config: ConfigDict) -> None:
    dataset = open_dataset(config)
    path = training_paths(dataset)[0]
    path.write_bytes(as_png(np.full((40, 32, 3), 200, np.uint8)))
    loader = training_loader(config, dataset.train, (0, 1))
    (batch,) = loader.batches(0, 1)
    assert loader.skipped == {}
    assert (batch["image"] == 200).all(axis=(1, 2, 3)).sum() == 1


def mask_path(config: ConfigDict, image: Path) -> Path:
    return Path(config.data.folder, "masks", image.parent.name, f"{image.stem}.png")


def test_a_truncated_mask_is_fatal_and_named(config: ConfigDict) -> None:
    dataset = open_dataset(config)
    mask = mask_path(config, training_paths(dataset)[2])
    mask.write_bytes(mask.read_bytes()[:60])
    loader = training_loader(config, dataset.train, (0, 1))
    with pytest.raises(UserError, match=f"mask {mask} is not a readable PNG file"):
        list(loader.batches(0, 1))


def test_a_mask_that_vanishes_is_fatal_and_named(config: ConfigDict) -> None:
    dataset = open_dataset(config)
    mask = mask_path(config, training_paths(dataset)[2])
    mask.unlink()
    loader = training_loader(config, dataset.train, (0, 1))
    with pytest.raises(UserError, match=f"cannot read {mask}: No such file"):
        list(loader.batches(0, 1))


@pytest.mark.parametrize("frame", ["full", "center_crop", "box"])
def test_a_record_of_another_aspect_is_fatal_and_names_both(
    config: ConfigDict, tmp_path: Path, frame: str
) -> None:
    """The images are 32 x 40: masks of 32 x 40 fit the whole image but neither of the others."""
    frames = {"center_crop": {"type": frame, "resize": 256, "crop": 224}}
    box = (0, 0, 0.5, 1) if frame == "box" else None
    fitting = {"full": (40, 32), "center_crop": (32, 32), "box": (20, 32)}[frame]
    bad = (32, 40)
    path = tmp_path / "records"
    with MaskWriter(path, encoding="png", frame=frames.get(frame, {"type": frame})) as writer:
        for file in sorted(Path(config.data.folder, "images").rglob("*.jpg")):
            name = f"{file.parent.name}/{file.stem}"
            size = bad if name == "class1/3" else fitting
            writer.add(name, core=as_png(np.full(size, 255, np.uint8)), box=box)
    config.data.masks = str(path)
    dataset = open_dataset(config)
    everything = [dataset.train, dataset.validation]
    (split,) = [s for s in everything if b"class1/3" in s.images.file_names]
    loader, count = evaluation_loader(config, split, (0, 1))
    with pytest.raises(UserError, match="another aspect ratio") as caught:
        list(loader.batches(0, count))
    assert f"{path}: record of 'class1/3' is 40x32 pixels" in str(caught.value)
    assert "images/class1/3.jpg" in str(caught.value)


def test_a_record_of_another_size_than_the_header_tells_is_fatal_and_named(
    config: ConfigDict, tmp_path: Path
) -> None:
    path = tmp_path / "records"
    with MaskWriter(path, encoding="png") as writer:
        for file in sorted(Path(config.data.folder, "images").rglob("*.jpg")):
            name = f"{file.parent.name}/{file.stem}"
            writer.add(name, core=as_png(np.full((40, 32), 255, np.uint8)))
    header = json.loads((path / "masks.json").read_text())
    assert header["size"] == [40, 32]
    (path / "masks.json").write_text(json.dumps(header | {"size": [20, 16]}))
    config.data.masks, config.data.image_size = str(path), 48  # larger than the masks
    loader = training_loader(config, open_dataset(config).train, (0, 1))
    with pytest.raises(UserError, match=r"is 32x40 pixels, masks.json says 16x20"):
        next(loader.batches(0, 1))

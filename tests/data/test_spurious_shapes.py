"""`spurious_shapes` through the same door as any data set, and what its records say."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from corm_jax.config import base_config
from corm_jax.data import drawing
from corm_jax.data.dataset import Dataset, evaluation_loader, open_dataset, training_loader
from corm_jax.data.pipeline import Split
from corm_jax.data.prepare import prepare_embedded
from corm_jax.data.spurious_shapes import SpuriousShapes, SpuriousShapesConfig
from corm_jax.errors import UserError
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.writer import MaskWriter

TINY = SpuriousShapes.builder_configs["tiny"]
SPLITS = {
    "train": TINY.train_images,
    "validation": TINY.validation_images,
    "counterfactual": TINY.validation_images,
}
CLASSES = len(drawing.SHAPES)


@pytest.fixture
def config(shapes_data_dir: Path) -> ConfigDict:
    config = base_config("erm")
    config.data.tfds_name = "spurious_shapes/tiny"
    config.data.data_dir = str(shapes_data_dir)
    return config


@pytest.fixture
def dataset(config: ConfigDict) -> Dataset:
    return open_dataset(config)


def records(data_dir: Path, split: str) -> list[dict]:
    builder = SpuriousShapes(config="tiny", data_dir=data_dir, file_format="array_record")
    return list(builder.as_data_source(split))


def split_of(dataset: Dataset, name: str) -> Split:
    return dataset.extra[name] if name == "counterfactual" else getattr(dataset, name)


def test_splits_have_their_sizes_and_every_image_its_mask(dataset: Dataset) -> None:
    for name, size in SPLITS.items():
        split = split_of(dataset, name)
        assert len(split.images) == len(split.rows) == size
        assert split.has_mask.all()
        assert (split.masks.file_names[split.rows] == split.images.file_names).all()
    assert dataset.class_names == tuple(drawing.SHAPES)
    total = sum(SPLITS.values())
    expected = {"images": total, "images_without_record": 0, "records_without_image": 0}
    assert dataset.counts == expected


def test_file_names_are_unique_over_all_splits(dataset: Dataset) -> None:
    names = np.concatenate([split_of(dataset, name).images.file_names for name in SPLITS])
    assert len(np.unique(names)) == sum(SPLITS.values())


def test_classes_are_balanced(shapes_data_dir: Path) -> None:
    for split, size in SPLITS.items():
        labels = [record["label"] for record in records(shapes_data_dir, split)]
        counts = np.bincount(labels, minlength=CLASSES)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1


def background_counts(agreement: float, split: str, data_dir: Path) -> np.ndarray:
    """Returns counts [label, background] of 2000 examples."""
    config = SpuriousShapesConfig(
        name="many", agreement=agreement, train_images=2000, validation_images=2000
    )
    builder = SpuriousShapes(config=config, data_dir=data_dir)
    counts = np.zeros((CLASSES, CLASSES), int)
    for _, example in builder._split_generators(None)[split]:
        counts[example["label"], example["background"]] += 1
    return counts


@pytest.mark.parametrize(
    ("split", "rate"),
    [("train", 0.95), ("validation", 0.95), ("counterfactual", 1 / CLASSES)],
)
def test_backgrounds_agree_with_the_class_at_the_configured_rate(
    split: str, rate: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Bands are of 4 standard deviations; the draws are fixed. Pictures are left out, for speed."""
    blank = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    monkeypatch.setattr(drawing, "draw_image", lambda *_: blank)
    counts = background_counts(0.95, split, tmp_path)
    total = counts.sum()
    deviation = np.sqrt(rate * (1 - rate) / total)
    assert abs(np.trace(counts) / total - rate) < 4 * deviation
    other = counts[~np.eye(CLASSES, dtype=bool)]
    expected = total * (1 - rate) / len(other)
    assert np.abs(other - expected).max() < 4 * np.sqrt(expected) + 1


def test_the_prepared_records_agree_at_the_configured_rate(shapes_data_dir: Path) -> None:
    def share(split: str) -> float:
        drawn = records(shapes_data_dir, split)
        return np.mean([record["label"] == record["background"] for record in drawn])

    assert share("train") > 0.88
    assert share("validation") > 0.85
    assert share("counterfactual") < 1 / CLASSES + 0.2


def test_masks_lie_on_the_shapes(shapes_data_dir: Path) -> None:
    """Inside and outside differ in colour most where the mask is, less when it is shifted."""

    def contrast(shift: tuple[int, int]) -> float:
        differences = []
        for record in drawn:
            mask = np.roll(record["core_mask"][..., 0] > 127, shift, axis=(0, 1))
            colours = [record["image"][region].mean(axis=0) for region in (mask, ~mask)]
            differences.append(np.linalg.norm(colours[0] - colours[1]))
        return float(np.mean(differences))

    drawn = records(shapes_data_dir, "counterfactual")
    assert all(0.01 < (record["core_mask"] > 127).mean() < 0.7 for record in drawn)
    assert all(contrast((0, 0)) > contrast(s) for s in ((1, 0), (-1, 0), (0, 1), (0, -1)))


def test_drawn_twice_it_is_the_same_bytes(shapes_data_dir: Path, tmp_path: Path) -> None:
    prepare_embedded("spurious_shapes/tiny", tmp_path)
    skip = {name: tfds.decode.SkipDecoding() for name in ("image", "core_mask")}
    for split in SPLITS:
        first, second = (
            SpuriousShapes(config="tiny", data_dir=path, file_format="array_record").as_data_source(
                split, decoders=skip
            )
            for path in (shapes_data_dir, tmp_path)
        )
        for one, other in zip(first, second, strict=True):
            assert one == other


def test_a_batch_holds_each_image_with_its_own_mask(
    config: ConfigDict, dataset: Dataset, shapes_data_dir: Path
) -> None:
    """Without crops and flips, a batch is what the records hold."""
    config.data.crop_area_min, config.data.flip = 1.0, False
    size = records(shapes_data_dir, "train")[0]["image"].shape[0]
    config.data.image_size, config.train.batch_size = size, 16
    split = dataset.train
    loader = training_loader(config, split, (0, 1))
    (batch,) = loader.batches(0, 1)
    chosen = loader.select(0).indices
    by_name = {r["file_name"].decode(): r for r in records(shapes_data_dir, "train")}
    for place, index in enumerate(chosen):
        record = by_name[split.images.file_names[index].decode()]
        assert batch["label"][place] == record["label"]
        np.testing.assert_array_equal(batch["core_grid"][place], record["core_mask"][..., 0])
        np.testing.assert_array_equal(batch["image"][place], record["image"])


def test_a_second_opening_draws_nothing(
    config: ConfigDict, dataset: Dataset, shapes_data_dir: Path
) -> None:
    files = [f for f in shapes_data_dir.rglob("*") if f.is_file() and not f.name.startswith(".")]
    before = {file: file.stat().st_mtime_ns for file in files}
    open_dataset(config)
    assert {file: file.stat().st_mtime_ns for file in files} == before


def test_masks_of_another_data_set_are_refused(config: ConfigDict, tmp_path: Path) -> None:
    with MaskWriter(tmp_path / "other", encoding="grid", grid=(1, 1)) as writer:
        writer.add("n01440764_1.JPEG", core=np.ones((1, 1), np.uint8))
    config.data.masks = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"other: 1 of 1 mask records .*n01440764_1.JPEG"):
        open_dataset(config)


def test_validation_may_have_other_masks_than_training(config: ConfigDict, tmp_path: Path) -> None:
    own = open_dataset(config)
    built = tmp_path / "built"
    with MaskWriter(built, encoding="grid", grid=(3, 3)) as writer:
        for name in own.train.images.file_names:
            writer.add(os.fsdecode(name), core=np.full((3, 3), 255, np.uint8))
    config.data.masks = str(built)
    with pytest.raises(UserError, match=r"no image of the validation split .*validation_masks"):
        open_dataset(config)
    config.data.validation_masks = str(own.validation.masks.path)
    dataset = open_dataset(config)
    assert dataset.train.masks.path == built
    assert dataset.train.has_mask.all()
    np.testing.assert_array_equal(dataset.validation.rows, own.validation.rows)
    (batch,) = training_loader(config, dataset.train, (0, 1)).batches(0, 1)
    assert (batch["core_grid"] == 255).all()
    loader, _ = evaluation_loader(config, dataset.validation, (0, 1))
    expected, _ = evaluation_loader(config, own.validation, (0, 1))
    batch, expected_batch = next(loader.batches(0, 1)), next(expected.batches(0, 1))
    np.testing.assert_array_equal(batch["core_grid"], expected_batch["core_grid"])


def test_records_may_name_images_of_splits_that_are_not_used(config: ConfigDict) -> None:
    config.data.counterfactual_split = ""
    dataset = open_dataset(config)
    assert dataset.extra == {}
    assert dataset.counts["records_without_image"] == 0


def test_an_unknown_split_or_config_or_data_set_is_named(config: ConfigDict) -> None:
    config.data.train_split = "training"
    with pytest.raises(UserError, match=r"no split 'training'; valid: counterfactual, train"):
        open_dataset(config)
    config.data.tfds_name = "spurious_shapes/rate_59"
    with pytest.raises(UserError, match=r"'rate_59' \(did you mean 'rate_95'\?\)"):
        open_dataset(config)
    config.data.tfds_name = "imagenet2012"
    with pytest.raises(UserError, match=r"imagenet2012 is not prepared under"):
        open_dataset(config)
    config.data.source = "floder"
    with pytest.raises(UserError, match=r"config.data.source 'floder' \(did you mean 'folder'\?\)"):
        open_dataset(config)


def test_an_interrupted_preparation_is_taken_up(tmp_path: Path, shapes_data_dir: Path) -> None:
    """The images are there but the masks are not, as after a kill between the two."""
    shutil.copytree(shapes_data_dir, tmp_path / "copy")
    directory, masks = prepare_embedded("spurious_shapes/tiny", tmp_path / "copy")
    expected = (masks / "core.bin").read_bytes()
    shutil.rmtree(masks)
    assert prepare_embedded("spurious_shapes/tiny", tmp_path / "copy") == (directory, masks)
    assert (masks / "core.bin").read_bytes() == expected
    assert len(MaskRecords.open(masks).file_names) == sum(SPLITS.values())

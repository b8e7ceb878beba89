"""Batches: the same ones after a resume, on any number of hosts, and with every example once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from corm_jax.config import base_config
from corm_jax.data.dataset import Dataset, evaluation_loader, open_dataset, training_loader

Batch = dict[str, np.ndarray]


def folder_config(folder: Path) -> ConfigDict:
    config = base_config("erm")
    config.data.source, config.data.folder = "folder", str(folder)
    config.data.image_size, config.train.batch_size, config.eval.batch_size = 16, 6, 6
    return config


@pytest.fixture
def config(make_folder: Callable[..., Path]) -> ConfigDict:
    return folder_config(make_folder(classes=2, images=10))


@pytest.fixture
def dataset(config: ConfigDict) -> Dataset:
    return open_dataset(config)


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            np.testing.assert_array_equal(one[key], value, err_msg=key)


def test_a_batch_has_the_documented_fields(config: ConfigDict, dataset: Dataset) -> None:
    (batch,) = training_loader(config, dataset.train, (0, 1)).batches(0, 1)
    fields = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert fields == {
        "image": ("uint8", (6, 16, 16, 3)),
        "label": ("int32", (6,)),
        "id": ("uint32", (6,)),
        "weight": ("float32", (6,)),
        "has_mask": ("float32", (6,)),
        "mask_window": ("float32", (6, 4)),
        "core_mask": ("uint8", (6, 16, 16)),
    }


def test_resuming_at_any_step_yields_the_very_same_batches(
    config: ConfigDict, dataset: Dataset
) -> None:
    """16 training images, so that 8 steps of 6 run over 3 epochs."""
    whole = list(training_loader(config, dataset.train, (0, 1)).batches(0, 8))
    for start in (1, 5):
        resumed = list(training_loader(config, dataset.train, (0, 1)).batches(start, 8))
        assert_equal(resumed, whole[start:])


def test_epochs_see_other_crops_of_an_image(config: ConfigDict, dataset: Dataset) -> None:
    config.train.batch_size = 16
    first, second = training_loader(config, dataset.train, (0, 1)).batches(0, 2)
    assert sorted(first["id"]) == sorted(second["id"])
    assert len(set(first["id"])) == 16
    same = second["id"].tolist().index(first["id"][0])
    assert (first["image"][0] != second["image"][same]).any()


@pytest.mark.parametrize("train", [True, False])
def test_hosts_together_load_the_global_batch(
    config: ConfigDict, dataset: Dataset, train: bool
) -> None:
    def load(shard: tuple[int, int]) -> list[Batch]:
        if train:
            return list(training_loader(config, dataset.train, shard).batches(0, 4))
        config.eval.batch_size = 4
        loader, count = evaluation_loader(config, dataset.train, shard)
        return list(loader.batches(0, count))

    parts = zip(load((0, 2)), load((1, 2)), strict=True)
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in parts]
    assert_equal(joined, load((0, 1)))


def test_evaluation_covers_each_image_once(config: ConfigDict, dataset: Dataset) -> None:
    loader, count = evaluation_loader(config, dataset.train, (0, 1))
    batches = list(loader.batches(0, count))
    assert count == len(batches) == 3
    ids, weights = (np.concatenate([b[key] for b in batches]) for key in ("id", "weight"))
    assert weights.tolist() == [1] * 16 + [0] * 2
    assert len(set(ids[weights > 0])) == 16


def test_a_subset_is_part_of_the_whole_and_the_same_every_time(
    config: ConfigDict, dataset: Dataset
) -> None:
    def load(size: int) -> list[Batch]:
        loader, count = evaluation_loader(config, dataset.train, (0, 1), size)
        return list(loader.batches(0, count))

    (subset,), everything = load(5), load(0)
    assert_equal(load(5), [subset])
    chosen = subset["id"][subset["weight"] > 0]
    assert len(set(chosen)) == 5
    assert set(chosen) < set(np.concatenate([batch["id"] for batch in everything]))


def test_an_image_keeps_its_id_in_another_folder(
    config: ConfigDict, dataset: Dataset, tmp_path: Path
) -> None:
    """The noise of an evaluation hangs on it."""
    folder = Path(config.data.folder)
    folder.rename(tmp_path / "moved")
    config.data.folder = str(tmp_path / "moved")
    moved = open_dataset(config)
    first, second = (
        next(evaluation_loader(config, d.validation, (0, 1))[0].batches(0, 1))["id"].tolist()
        for d in (moved, open_dataset(config))
    )
    assert first == second
    assert moved.validation.images.file_names.tolist() == (
        dataset.validation.images.file_names.tolist()
    )


def test_an_image_without_mask_is_loaded_and_marked(config: ConfigDict) -> None:
    folder = Path(config.data.folder)
    for path in (folder / "masks/class0").iterdir():
        path.unlink()
    dataset = open_dataset(config)
    assert dataset.counts == {
        "images": 20,
        "images_without_record": 10,
        "records_without_image": 0,
    }
    config.train.batch_size = 16
    (batch,) = training_loader(config, dataset.train, (0, 1)).batches(0, 1)
    np.testing.assert_array_equal(batch["has_mask"], batch["label"] == 1)
    np.testing.assert_array_equal(batch["core_mask"].any(axis=(1, 2)), batch["label"] == 1)
    assert batch["weight"].tolist() == [1] * 16

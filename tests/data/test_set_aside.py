"""Training images set aside to select by: which they are, and that nothing trains on them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import small_config
from ml_collections import ConfigDict

from corm_jax.data.dataset import evaluation_loader, open_dataset, training_loader
from corm_jax.data.pipeline import Split
from corm_jax.errors import UserError


def names(split: Split) -> list[str]:
    return [name.decode() for name in split.images.file_names]


@pytest.fixture
def shapes(shapes_data_dir: Path) -> ConfigDict:
    return small_config("configs/vit_erm.py", shapes_data_dir)


@pytest.fixture
def folder(make_folder: Callable[..., Path], tmp_path: Path) -> ConfigDict:
    config = small_config("configs/vit_erm.py:folder", tmp_path)
    config.data.folder = str(make_folder(classes=3, images=10))
    config.data.image_size = 16
    return config


@pytest.mark.parametrize(("name", "per_class"), [("shapes", (12, 4)), ("folder", (6, 2))])
def test_a_share_of_every_class_is_set_aside_and_the_rest_trained_on(
    request: pytest.FixtureRequest, name: str, per_class: tuple[int, int]
) -> None:
    config = request.getfixturevalue(name)
    whole = open_dataset(config)
    assert whole.selection is None
    config.data.selection_share = 0.25
    parts = open_dataset(config)
    assert parts.selection is not None
    assert sorted(names(parts.train) + names(parts.selection)) == sorted(names(whole.train))
    for split, count in zip((parts.train, parts.selection), per_class, strict=True):
        assert set(np.bincount(split.images.labels())) == {count}
        # Image, label and mask are still each other's.
        for index, image in enumerate(names(split)):
            place = names(whole.train).index(image)
            assert split.images.read([index]) == whole.train.images.read([place])
            assert split.images.labels()[index] == split.images.read([index])[0][1]
            assert split.rows[index] == whole.train.rows[place]
            assert split.has_mask[index] == whole.train.has_mask[place]
            assert split.images.describe(index) == whole.train.images.describe(place)
    assert names(parts.validation) == names(whole.validation)


def test_training_takes_none_of_them_and_another_seed_changes_nothing(shapes: ConfigDict) -> None:
    shapes.data.selection_share = 0.25
    dataset = open_dataset(shapes)
    assert dataset.selection is not None
    loader, count = evaluation_loader(shapes, dataset.selection, (0, 1))
    chosen = {int(i) for b in loader.batches(0, count) for i in b["id"][b["weight"] > 0]}
    assert len(chosen) == len(dataset.selection.images) == 24
    training = training_loader(shapes, dataset.train, (0, 1))
    taken = {int(i) for batch in training.batches(0, 9) for i in batch["id"]}
    assert len(taken) == 72  # an epoch of 9 batches of 8
    assert not taken & chosen
    shapes.seed = 5
    again = open_dataset(shapes).selection
    assert again is not None
    assert names(again) == names(dataset.selection)


def test_sets_of_masks_that_the_share_leaves_empty_are_refused(folder: ConfigDict) -> None:
    masks = sorted(Path(folder.data.folder).glob("masks/*/*.png"))
    training = set(names(open_dataset(folder).train))
    left = [m for m in masks if f"{m.parent.name}/{m.stem}" in training][:1]
    for mask in masks:
        validation = f"{mask.parent.name}/{mask.stem}" not in training
        if mask not in left and not validation:
            mask.unlink()
    folder.data.selection_share = 0.1
    message = "config.data.selection_share=0.1 leaves no image with a core mask"
    with pytest.raises(UserError, match=re.escape(message)):
        open_dataset(folder)

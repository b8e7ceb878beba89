import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corm_jax.errors import UserError
from corm_jax.masks.building import store
from corm_jax.masks.building.store import FeatureStore

Make = Callable[..., FeatureStore]


@pytest.fixture
def five(make_store: Make) -> FeatureStore:
    """Five images, three channels: activation and map tell image and channel."""
    numbers = 10 * np.arange(5)[:, None] + np.arange(3)
    maps = np.tile(numbers[:, :, None, None], (1, 1, 2, 4)).astype(np.uint8)
    return make_store(numbers.astype(np.float32), [0, 1, 0, 1, 1], maps=maps)


def test_images_are_found_across_shards(five: FeatureStore) -> None:
    images = np.array([4, 0, 3, 4])
    np.testing.assert_array_equal(
        five.activations(images), [[40, 41, 42], [0, 1, 2], [30, 31, 32], [40, 41, 42]]
    )
    maps = five.maps(images, np.array([2, 1, 0, 0]))
    assert maps.shape == (4, 2, 4)
    np.testing.assert_array_equal(maps[:, 1, 3], [42, 1, 30, 40])
    assert len(five) == 5
    np.testing.assert_array_equal(five.label, [0, 1, 0, 1, 1])
    assert [len(part) for part in five.shard_activations()] == [2, 2, 1]


def test_maps_that_were_no_candidates_are_found_once_added(tmp_path: Path) -> None:
    names = np.array([b"a", b"b", b"c"])
    header = store.describe(
        names, encoder="some", shard_images=3, channels=9, grid=(1, 1), candidates=1
    )
    store.create_store(tmp_path, header, names)
    shard = {
        "label": np.zeros(3, np.int32),
        "predicted": np.zeros(3, np.int32),
        "valid": np.ones(3, bool),
        "activations": np.zeros((3, 9), np.float16),
        "candidates": np.array([[7], [7], [2]], np.uint16),
        "maps": np.array([1, 2, 3], np.uint8).reshape(3, 1, 1, 1),
    }
    store.write_arrays(store.shard_path(tmp_path, 0), shard)
    images, features = np.array([0, 1, 2, 2, 0]), np.array([7, 2, 2, 8, 0])
    before = FeatureStore(tmp_path)
    np.testing.assert_array_equal(
        before.has_map(images, features), [True, False, True, False, False]
    )
    with pytest.raises(UserError, match="no map of feature 2 on image 1; run the same build again"):
        before.maps(images, features)

    for number, (pairs, values) in enumerate([([(0, 0), (2, 8)], [4, 5]), ([(1, 2)], [6])]):
        more = {
            "images": np.array([pair[0] for pair in pairs], np.int64),
            "features": np.array([pair[1] for pair in pairs], np.int32),
            "maps": np.array(values, np.uint8).reshape(-1, 1, 1),
        }
        store.write_arrays(tmp_path / f"more-{number:05d}", more)
    after = FeatureStore(tmp_path)
    np.testing.assert_array_equal(after.maps(images, features).ravel(), [1, 6, 3, 5, 4])
    assert not after.has_map(np.array([1]), np.array([8])).any()
    assert after.encoded_again == 3


def test_store_of_something_else_is_refused(five: FeatureStore) -> None:
    names = five.file_names
    header = store.describe(
        names, encoder="some", shard_images=2, channels=3, grid=(2, 4), candidates=3
    )
    store.create_store(five.directory, header, names)  # the same one: nothing happens
    other_images = store.describe(
        names[::-1], encoder="other", shard_images=2, channels=3, grid=(2, 4), candidates=3
    )
    with pytest.raises(UserError, match="made with another encoder, file_names; choose another"):
        store.create_store(five.directory, other_images, names[::-1])


def test_missing_and_damaged_parts_are_named(five: FeatureStore) -> None:
    directory = five.directory
    damaged = directory / "shard-00001" / "maps.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=re.escape(str(damaged))):
        FeatureStore(directory)
    shutil.rmtree(directory / "shard-00001")
    with pytest.raises(UserError, match="shard-00001 is missing; run the same build again"):
        FeatureStore(directory)
    (directory / "store.json").write_text("{}")
    with pytest.raises(UserError, match=r"store.json does not follow corm_jax.features/1"):
        FeatureStore(directory)
    with pytest.raises(UserError, match="holds no features; make them: python"):
        FeatureStore(directory.parent)

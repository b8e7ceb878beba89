import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from corm_jax.errors import UserError
from corm_jax.masks.building.selection import Feature, read_features, select, write_features
from corm_jax.masks.building.store import FeatureStore

Make = Callable[..., FeatureStore]
# Class 0 weighs channel 0 once, channel 1 twice, channel 2 negatively; class 1 channel 2 alone.
WEIGHT = np.array([[1, 0, 0], [2, 0, 0], [-1, 3, 0]], np.float32)
ACTIVATIONS = np.array([[8, 1, 0], [4, 2, 9], [0, 0, 5], [0, 6, 1], [9, 9, 9]], np.float32)


def test_importance_is_mean_activation_times_weight(make_store: Make) -> None:
    store = make_store(ACTIVATIONS, label=[0, 1, 1, 0, 0], predicted=[0, 0, 1, 0, 1])
    # Predicted as 0: images 0, 1 and 3, means (4, 3, 10/3); as 1: images 2 and 4; as 2: none.
    found = select(store, WEIGHT, features_per_class=2, by="prediction")
    assert found == [
        Feature(class_index=0, feature=1, rank=1, importance=6.0),
        Feature(class_index=0, feature=0, rank=2, importance=4.0),
        Feature(class_index=1, feature=2, rank=1, importance=21.0),
        Feature(class_index=1, feature=0, rank=2, importance=0.0),  # the lower of equal ones
    ]
    by_label = select(store, WEIGHT, features_per_class=1, by="label")
    # Of class 0: images 0, 3 and 4, means (17/3, 16/3, 10/3); of class 1: images 1 and 2.
    assert [(f.class_index, f.feature) for f in by_label] == [(0, 1), (1, 2)]
    assert by_label[0].importance == pytest.approx(32 / 3)
    assert by_label[1].importance == 21.0


def test_undecodable_images_do_not_count(make_store: Make) -> None:
    store = make_store(ACTIVATIONS, label=[0] * 5, valid=[True, False, True, False, False])
    (feature,) = select(store, WEIGHT, features_per_class=1, by="prediction")
    assert feature == Feature(class_index=0, feature=0, rank=1, importance=4.0)


def test_sums_over_shards_match_numpy(make_store: Make) -> None:
    rng = np.random.default_rng(0)
    activations = rng.random((41, 7)).astype(np.float16).astype(np.float32)
    predicted = rng.integers(0, 3, 41)
    weight = rng.normal(size=(7, 3)).astype(np.float32)
    store = make_store(activations, label=[0] * 41, predicted=predicted.tolist())
    found = select(store, weight, features_per_class=3, by="prediction")
    for index in range(3):
        importance = activations[predicted == index].mean(axis=0, dtype=float) * weight[:, index]
        best = sorted(range(7), key=lambda channel: -importance[channel])[:3]
        own = [f for f in found if f.class_index == index]
        assert [f.feature for f in own] == best
        np.testing.assert_allclose([f.importance for f in own], importance[best])


def test_unknown_choice_is_named(make_store: Make) -> None:
    store = make_store(ACTIVATIONS, label=[0] * 5)
    with pytest.raises(UserError, match="did you mean 'label'"):
        select(store, WEIGHT, by="labels")


def test_features_are_read_as_they_were_written(tmp_path: Path) -> None:
    features = [Feature(0, 7, 1, 0.1), Feature(2, 3, 1, 1 / 3)]
    path = tmp_path / "features.json"
    write_features(path, features, ("a", "b", "c"))
    assert read_features(path) == (features, ("a", "b", "c"))
    assert json.loads(path.read_text())["features"][1]["class"] == "c"
    path.write_text("[]")
    with pytest.raises(UserError, match="does not follow"):
        read_features(path)
    path.unlink()
    with pytest.raises(UserError, match=r"features.json is missing; select features first"):
        read_features(path)

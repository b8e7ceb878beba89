from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from corm_jax.data.geometry import center_crop_share
from corm_jax.masks.__main__ import main
from corm_jax.masks.building.assemble import (
    Plan,
    frame_of,
    plan,
    write_feature_maps,
    write_records,
)
from corm_jax.masks.building.selection import Feature
from corm_jax.masks.building.store import FeatureStore
from corm_jax.masks.records import MaskRecords

Make = Callable[..., FeatureStore]
CORE, SPURIOUS = (1.0, 0.0), (0.0, 1.0)
FEATURES = [Feature(0, 2, 1, 9.0), Feature(0, 0, 2, 8.0), Feature(1, 2, 1, 7.0)]
KINDS = {(0, 2): CORE, (0, 0): SPURIOUS, (1, 2): SPURIOUS}
ACTIVATIONS = np.array(
    [[1, 0, 5], [3, 0, 1], [3, 0, 5], [9, 0, 9], [4, 0, 2], [0, 0, 6]], np.float32
)


@pytest.fixture
def store(make_store: Make) -> FeatureStore:
    """Of class 0 images 0, 1, 2, 3 (which cannot be decoded) and 5, of class 1 image 4."""
    maps = np.random.default_rng(0).integers(0, 256, (6, 3, 2, 2), np.uint8)
    valid = [True, True, True, False, True, True]
    return make_store(ACTIVATIONS, [0, 0, 0, 0, 1, 0], maps=maps, valid=valid)


def as_tuples(plan: Plan) -> list[tuple[int, int, tuple[float, float]]]:
    weights = [tuple(weight) for weight in plan.weights.tolist()]
    return list(zip(plan.images.tolist(), plan.features.tolist(), weights, strict=True))


def test_top_images_of_each_class_and_feature_are_chosen(store: FeatureStore) -> None:
    # Feature 2 of class 0: images 5 (6), 0 and 2 (5 each), 1; feature 0: 1 and 2 (3 each), 0, 5.
    found = plan(store, FEATURES, KINDS, top_k=2)
    assert as_tuples(found) == [
        (0, 2, CORE),  # before image 2, of the same activation
        (1, 0, SPURIOUS),
        (2, 0, SPURIOUS),
        (4, 2, SPURIOUS),
        (5, 2, CORE),
    ]
    everything = plan(store, FEATURES, KINDS, top_k=0)
    pairs = [(image, channel) for image in (0, 1, 2, 5) for channel in (0, 2)] + [(4, 2)]
    assert [tuple(pair) for pair in everything.pairs()] == sorted(pairs)


def test_masks_are_maxima_over_their_features(store: FeatureStore, tmp_path: Path) -> None:
    weights = np.array([CORE, CORE, SPURIOUS, CORE, (0.6, 0.4)], np.float32)
    chosen = Plan(np.array([0, 0, 0, 2, 4]), np.array([0, 1, 2, 1, 2]), weights)
    path = tmp_path / "masks"
    frame = frame_of(48, 1.0)
    write_records(path, {"train": store}, {"train": chosen}, frame=frame, source="x", origin={})
    records = MaskRecords.open(path)
    assert records.file_names.tolist() == [b"train_0.JPEG", b"train_2.JPEG", b"train_4.JPEG"]
    np.testing.assert_array_equal(records.has("core"), [True, True, True])
    np.testing.assert_array_equal(records.has("spurious"), [True, False, True])

    def map_of(image: int, feature: int) -> np.ndarray:
        return store.maps(np.array([image]), np.array([feature]))[0]

    core, spurious = (records.grids(kind, np.arange(3)) for kind in ("core", "spurious"))
    np.testing.assert_array_equal(core[0], np.maximum(map_of(0, 0), map_of(0, 1)))
    np.testing.assert_array_equal(spurious[0], map_of(0, 2))
    np.testing.assert_array_equal(core[1], map_of(2, 1))
    np.testing.assert_allclose(core[2], map_of(4, 2) * 0.6, atol=0.5)
    np.testing.assert_allclose(spurious[2], map_of(4, 2) * 0.4, atol=0.5)
    assert main(["verify", str(path)]) == 0


def test_two_splits_and_feature_maps_have_the_same_rows(make_store: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    stores, plans = {}, {}
    for name, count in (("train", 5), ("validation", 3)):
        activations = rng.random((count, 4)).astype(np.float32)
        maps = rng.integers(0, 256, (count, 4, 2, 3), np.uint8)
        stores[name] = make_store(activations, [0] * count, maps=maps, name=name)
        features = [Feature(0, 1, 1, 1.0), Feature(0, 3, 2, 1.0)]
        kinds = {(0, 1): CORE, (0, 3): CORE}
        plans[name] = plan(stores[name], features, kinds, top_k=2)
    frame = frame_of(48, 1.0)
    write_records(tmp_path / "masks", stores, plans, frame=frame, source="", origin={})
    write_feature_maps(tmp_path / "maps", stores, plans)

    records = MaskRecords.open(tmp_path / "masks")
    row, feature, maps = (
        np.load(tmp_path / "maps" / f"{name}.npy") for name in ("row", "feature", "maps")
    )
    assert len(row) == 8
    assert set(feature.tolist()) == {1, 3}
    built = np.zeros((len(records.file_names), 2, 3), np.uint8)
    np.maximum.at(built, row, maps)
    np.testing.assert_array_equal(built, records.grids("core", np.arange(len(built))))
    names = [name.split(b"_")[0] for name in records.file_names.tolist()]
    assert names == sorted(names)  # the training images first


@pytest.mark.parametrize(
    ("size", "share", "frame"),
    [(224, 0.875, (256, 224)), (48, 1.0, (48, 48)), (64, 0.9, (70, 63)), (32, 0.875, (32, 28))],
)
def test_frame_has_the_share_of_the_encoder(
    size: int, share: float, frame: tuple[int, int]
) -> None:
    found = frame_of(size, share)
    assert (found["resize"], found["crop"]) == frame
    assert center_crop_share(found) == pytest.approx(float(Fraction(share)), abs=1e-9)

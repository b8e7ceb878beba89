"""Noise on one annotated feature at a time against numpy, image by image; the table by hand."""

import csv
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluating import Linear, batches, mesh_of
from ml_collections import ConfigDict

from corm_jax import adapters
from corm_jax.data.features import ClassFeatures, class_features
from corm_jax.errors import UserError
from corm_jax.feature_table import write_feature_table
from corm_jax.masks.building.selection import Feature
from corm_jax.metrics import Outcome
from corm_jax.protocols import PROTOCOLS, make_eval_step, measure
from corm_jax.protocols.summary import summarize
from corm_jax.protocols.types import Measured
from corm_jax.statistics import intervals

SIZE, GRID, CLASSES, IMAGES, SEED, SIGMA = 12, 3, 3, 18, 4, 0.7
CONFIG = ConfigDict({"eval": {"seed": SEED, "trials": 7, "sigma": SIGMA}})
NONE, CORE, SPURIOUS = -1, 0, 1
# Class 0 has three features, class 1 a spurious one, class 2 none.
CHANNEL = np.array([[9, 4, 7], [4, 0, 0], [0, 0, 0]], np.int32)
KIND = np.array([[CORE, SPURIOUS, CORE], [SPURIOUS, NONE, NONE], [NONE, NONE, NONE]], np.int32)


@pytest.fixture(scope="module")
def kernel() -> np.ndarray:
    kernel = np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, CLASSES))
    return kernel - kernel.mean(axis=0)  # grey tells nothing


@pytest.fixture(scope="module")
def examples(kernel: np.ndarray) -> dict[str, np.ndarray]:
    """Loaded images; the first three of class 0 lack maps, the windows cut all maps in half."""
    rng = np.random.default_rng(1)
    label = (np.arange(IMAGES) % CLASSES).astype(np.int32)
    telling = 4 * kernel.T[label].reshape(IMAGES, SIZE, SIZE, 3)  # of the class, some
    images = (rng.integers(60, 196, telling.shape) + telling).round().astype(np.uint8)
    grids = rng.integers(1, 256, (IMAGES, 3, GRID, GRID)).astype(np.uint8)
    grids[KIND[label] == NONE] = 0
    grids[0] = 0  # no map at all
    grids[3, 0] = 0  # of one core feature alone
    grids[6, 1] = 0  # no spurious one
    grids[6, :, :, :2] = 0
    grids[9, 2, :, 1:] = 0  # empty within the crop, which is the right half
    return {
        "image": images,
        "label": label,
        "id": rng.integers(0, 2**32, IMAGES, np.uint32),
        "weight": np.ones(IMAGES, np.float32),
        "has_mask": (grids > 0).any(axis=(1, 2, 3)).astype(np.float32),
        "mask_window": np.tile(np.array([0, 0.5, 1, 1], np.float32), (IMAGES, 1)),
        "feature_grid": grids,
        "feature": CHANNEL[label],
        "feature_kind": KIND[label],
    }


def region_of(grid: np.ndarray) -> np.ndarray:
    """Returns the right half of a grid, stretched bilinearly, float64 [SIZE, SIZE, 1]."""

    def weights(begin: float, end: float) -> np.ndarray:
        centers = begin + (end - begin) * (np.arange(SIZE) + 0.5) / SIZE
        places = np.clip(centers * GRID - 0.5, 0, GRID - 1)
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(GRID)))

    return (weights(0, 1) @ (grid / 255) @ weights(0.5, 1).T)[..., None]


def hit(kernel: np.ndarray, examples: dict, index: int, slot: int | None) -> float:
    """Returns 1 where an image is right, with noise on a feature; NaN where it does not show."""
    view = examples["image"][index] / 255
    if slot is not None:
        region = region_of(examples["feature_grid"][index, slot])
        if not region.any():
            return np.nan
        key = jax.random.fold_in(jax.random.key(SEED), examples["id"][index])
        key = jax.random.fold_in(jax.random.fold_in(key, 0), examples["feature"][index, slot])
        noise = np.asarray(jax.random.normal(key, (SIZE, SIZE, 3)), np.float64)
        view = np.clip(view + SIGMA * region * noise, 0, 1)
    return float((view.reshape(-1) @ kernel).argmax() == examples["label"][index])


@pytest.fixture(scope="module")
def expected(kernel: np.ndarray, examples: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns (right without noise [N], with noise on each feature [N, 3], NaN for none)."""
    clean = [hit(kernel, examples, index, None) for index in range(IMAGES)]
    noisy = [[hit(kernel, examples, index, slot) for slot in range(3)] for index in range(IMAGES)]
    return np.array(clean), np.array(noisy)


class Torchlike:
    """A model that no compiled program can hold."""

    def __init__(self, kernel: np.ndarray) -> None:
        self._kernel = kernel

    def apply(self, variables, images, *, train):
        return jnp.asarray(np.asarray(images).reshape(len(images), -1) @ self._kernel), {}


@pytest.mark.parametrize(("size", "devices"), [(5, 1), (24, 8), (5, None)])
def test_outcomes_equal_numpy_image_by_image(
    kernel: np.ndarray, examples: dict, expected: tuple, size: int, devices: int | None
) -> None:
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(CLASSES)}
    mesh = mesh_of(devices or 1)
    if devices is None:
        step = adapters.make_eval_step("single_feature", Torchlike(kernel), CONFIG)
    else:
        step = make_eval_step(PROTOCOLS["single_feature"](Linear(CLASSES), CONFIG), mesh)
    measured = measure(step, {"params": {"Dense_0": layer}}, batches(examples, size), mesh)
    clean, noisy = expected
    outcomes, label = measured.outcomes, examples["label"]
    np.testing.assert_array_equal(outcomes["single_clean"].correct, clean)
    for slot in range(3):
        found = outcomes[f"single_feature_{slot}"]
        np.testing.assert_array_equal(found.number, ~np.isnan(noisy[:, slot]))
        np.testing.assert_array_equal(found.correct, np.nan_to_num(noisy[:, slot]))

    metrics, values = summarize(measured), []
    for name, kind in (("core", CORE), ("spurious", SPURIOUS)):
        of_kind = np.where(KIND[label] == kind, noisy, np.nan)
        counted = ~np.isnan(of_kind).all(axis=1)
        mean = np.array(
            [np.nanmean(row) if c else 0 for row, c in zip(of_kind, counted, strict=True)]
        )
        found = outcomes[f"single_{name}"]
        np.testing.assert_array_equal(found.number, counted)
        np.testing.assert_allclose(found.correct, mean, atol=1e-6)
        np.testing.assert_array_equal(outcomes[f"single_{name}_clean"].number, counted)
        classes = [counted & (label == c) for c in np.unique(label[counted])]
        accuracy = np.mean([mean[members].mean() for members in classes])
        before = np.mean([clean[members].mean() for members in classes])
        assert metrics[f"single_{name}"] == pytest.approx(accuracy, abs=1e-6)
        assert metrics[f"single_{name}_drop"] == pytest.approx(before - accuracy, abs=1e-6)
        assert metrics[f"images_single_{name}"] == counted.sum()
        values += [accuracy, before]
    assert len(set(values)) == 4  # all are told apart
    assert metrics["images_single_core"] == 5  # of 6 of class 0
    assert metrics["images_single_spurious"] == 10  # of those 5 without one, and of class 1
    assert {"images", "classes"} == intervals(measured)["single_core_drop"].keys()
    assert not {"clean", "core"} & metrics.keys()


def test_the_noise_of_a_feature_is_its_own(kernel: np.ndarray, examples: dict) -> None:
    """By the channel, not by the place among the class's features, nor by the number of trials."""
    moved = dict(examples)
    for name in ("feature_grid", "feature", "feature_kind"):
        moved[name] = examples[name][:, ::-1].copy()
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(CLASSES)}
    one, other = (
        measure(
            make_eval_step(PROTOCOLS["single_feature"](Linear(CLASSES), config), mesh_of(1)),
            {"params": {"Dense_0": layer}},
            batches(given, 6),
            mesh_of(1),
        ).outcomes
        for given, config in (
            (examples, CONFIG),
            (moved, ConfigDict({"eval": {**CONFIG.eval, "trials": 1}})),
        )
    )
    np.testing.assert_allclose(one["single_core"].correct, other["single_core"].correct, atol=1e-6)
    for slot in range(3):
        first, second = one[f"single_feature_{slot}"], other[f"single_feature_{2 - slot}"]
        np.testing.assert_array_equal(first.correct, second.correct)


def test_the_table_has_each_annotated_feature(tmp_path: Path) -> None:
    rank = np.array([[1, 2, 5], [3, 0, 0], [0, 0, 0]], np.int32)
    label = np.array([0, 0, 0, 1, 2], np.int32)
    one = np.ones(5, np.float32)
    outcomes = {
        "single_clean": Outcome(np.array([1, 1, 0, 1, 1], np.float32), one),
        "single_feature_0": Outcome(np.array([1, 0, 0, 0, 0]), np.array([1, 1, 1, 0, 0])),
        "single_feature_1": Outcome(np.array([0, 1, 0, 0, 0]), np.array([1, 1, 0, 0, 0])),
        "single_feature_2": Outcome(np.array([0, 0, 1, 0, 0]), np.array([0, 0, 1, 0, 0])),
    }
    path = tmp_path / "single_feature.csv"
    measured = Measured(np.arange(5, dtype=np.uint32), label, one, outcomes)
    write_feature_table(path, measured, ClassFeatures(CHANNEL, KIND, rank), ("a", "b", "c"))
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["class", "feature", "rank", "kind", "images"]
    assert header[5:] == ["accuracy", "accuracy_under_noise", "drop"]
    assert rows == [
        ["a", "9", "1", "core", "3", "0.666667", "0.333333", "0.333333"],
        ["a", "4", "2", "spurious", "2", "1.0", "0.5", "0.5"],
        ["a", "7", "5", "core", "1", "0.0", "1.0", "-1.0"],
        ["b", "4", "3", "spurious", "0", "", "", ""],
    ]


def test_features_go_to_classes_by_name() -> None:
    features = [Feature(0, 5, 1, 2.0), Feature(0, 6, 2, 1.0), Feature(2, 5, 1, 1.0)]
    built = SimpleNamespace(
        workdir="runs/masks",
        class_names=("otter", "duck", "seal"),
        features=features,
        kinds=["core", "spurious", "spurious"],
    )
    found = class_features(built, ("seal", "newt", "otter"))
    np.testing.assert_array_equal(found.channel, [[5, 0], [0, 0], [5, 6]])
    np.testing.assert_array_equal(found.kind, [[1, NONE], [NONE, NONE], [0, 1]])
    np.testing.assert_array_equal(found.rank, [[1, 0], [0, 0], [1, 2]])
    with pytest.raises(UserError, match="runs/masks are of other classes, such as 'otter'; the da"):
        class_features(built, ("n01", "n02"))

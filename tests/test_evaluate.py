"""The evaluation protocols against an independent computation in numpy and scipy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluating import Linear, batches, evaluate, mesh_of
from ml_collections import ConfigDict
from scipy import ndimage

from corm_jax.masks.morphology import dilate
from corm_jax.protocols import PROTOCOLS, make_eval_step
from corm_jax.protocols.views import core_region, dilations, noisy_pair
from corm_jax.sharding import put_batch
from corm_jax.steps import expand_batch

SIZE, CLASSES, IMAGES, TRIALS, SIGMA, SEED = 24, 3, 19, 3, 0.25, 5
CONFIG = ConfigDict({"eval": {"seed": SEED, "trials": TRIALS, "sigma": SIGMA}})
PLUS = np.zeros((5, 5), bool)
PLUS[2, :] = PLUS[:, 2] = True


@pytest.fixture(scope="module")
def kernel():
    return np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, CLASSES))


@pytest.fixture(scope="module")
def variables(kernel):
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(CLASSES)}
    return {"params": {"Dense_0": layer}}


@pytest.fixture(scope="module")
def examples(kernel):
    """Loaded examples: 13 with a mask, 1 whose mask is empty, 5 without; 3 partly masked."""
    rng = np.random.default_rng(1)
    images = rng.integers(30, 226, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8)
    labels = (images.reshape(IMAGES, -1) / 255 @ kernel).argmax(axis=1)
    labels[::4] = rng.integers(0, CLASSES, len(labels[::4]))
    masks = np.zeros((IMAGES, SIZE, SIZE), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, SIZE - 8, 2)
        mask[top : top + 8, left : left + 6] = rng.integers(1, 200, (8, 6))
    masks[2] = 0
    windows = np.tile(np.array([0, 0, 1, 1], np.float32), (IMAGES, 1))
    windows[7:10] = (0, -0.25, 1, 0.75)  # says nothing about the left quarter of the image
    return {
        "image": images,
        "label": labels.astype(np.int32),
        "id": rng.integers(0, 2**32, IMAGES, np.uint32),
        "weight": np.ones(IMAGES, np.float32),
        "has_mask": (np.arange(IMAGES) < 14).astype(np.float32),
        "mask_window": windows,
        "core_mask": masks,
    }


def noise_of(identity, trial):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), identity), trial)
    return np.asarray(jax.random.normal(key, (SIZE, SIZE, 3)), np.float64)


def expected_counts(examples, kernel):
    """Returns (clean, core, spurious) hits [N], [N, TRIALS], [N, TRIALS]; NaN if not counted."""
    clean = np.zeros(IMAGES)
    core, spurious = np.full((2, IMAGES, TRIALS), np.nan)
    for index in range(IMAGES):
        image, label = examples["image"][index] / 255, examples["label"][index]

        def hit(view, label=label):
            return (view.ravel() @ kernel).argmax() == label

        clean[index] = hit(image)
        valid = np.ones((SIZE, SIZE))
        valid[:, : 6 if 7 <= index < 10 else 0] = 0
        region = examples["core_mask"][index] / 255 * valid
        if not examples["has_mask"][index] or not region.any():
            continue
        for _ in range(2):  # 15 * 24 / 224, rounded
            region = ndimage.grey_dilation(region, footprint=PLUS, mode="constant")
        region = (region / region.max())[..., None]
        for trial in range(TRIALS):
            noise = SIGMA * noise_of(examples["id"][index], trial) * valid[..., None]
            core[index, trial] = hit(np.clip(image + noise * (1 - region), 0, 1))
            spurious[index, trial] = hit(np.clip(image + noise * region, 0, 1))
    return clean, core, spurious


def balanced(hits, labels):
    """Returns the mean over classes of the mean over their images and trials."""
    return np.mean([np.nanmean(hits[labels == label]) for label in range(CLASSES)])


@pytest.fixture(scope="module")
def results(variables, examples):
    mesh = mesh_of(1)
    step = make_eval_step(PROTOCOLS["complement"](Linear(CLASSES), CONFIG), mesh)
    return evaluate(step, variables, batches(examples, 7), mesh)


def test_complement_equals_a_numpy_computation(results, examples, kernel):
    clean, core, spurious = expected_counts(examples, kernel)
    labels = examples["label"]
    assert results["clean"] == pytest.approx(balanced(clean, labels), abs=1e-6)
    assert results["clean_plain"] == pytest.approx(clean.mean(), abs=1e-6)
    assert results["core"] == pytest.approx(balanced(core, labels), abs=1e-6)
    assert results["spurious"] == pytest.approx(balanced(spurious, labels), abs=1e-6)
    mean = (results["core"] + results["spurious"]) / 2
    difference = results["core"] - results["spurious"]
    assert results["rcs"] == pytest.approx(difference / (2 * min(mean, 1 - mean)))
    assert (results["images"], results["images_with_core"]) == (IMAGES, 13)
    # The data tells the three apart.
    assert len({round(results[key], 6) for key in ("clean", "core", "spurious")}) == 3


@pytest.mark.parametrize(("size", "devices"), [(4, 1), (16, 8)])
def test_results_depend_on_neither_batch_size_nor_devices(
    results, variables, examples, size, devices
):
    mesh = mesh_of(devices)
    step = make_eval_step(PROTOCOLS["complement"](Linear(CLASSES), CONFIG), mesh)
    found = evaluate(step, variables, batches(examples, size), mesh)
    assert found.pop("ece") == pytest.approx(results["ece"], abs=1e-6)
    assert found == {name: value for name, value in results.items() if name != "ece"}


def test_clean_protocol_counts_what_complement_does(results, variables, examples):
    mesh = mesh_of(1)
    step = make_eval_step(PROTOCOLS["clean"](Linear(CLASSES), CONFIG), mesh)
    step = partial(step, classes=np.ones(CLASSES, bool))
    found = evaluate(step, variables, batches(examples, 7), mesh)
    expected = ("clean", "clean_plain", "worst_class", "images")
    assert found == {key: results[key] for key in expected}


def test_clean_predictions_are_taken_among_the_given_classes(variables, examples, kernel):
    """Images of classes 0 and 2 alone; of all three, class 1 would often be predicted."""
    logits = examples["image"].reshape(IMAGES, -1) / 255 @ kernel
    predicted = np.where(logits[:, 0] > logits[:, 2], 0, 2).astype(np.int32)
    assert (predicted != logits.argmax(axis=1)).any()
    labels = predicted.copy()
    labels[::3] = 2 - labels[::3]
    hits = predicted == labels
    mesh = mesh_of(8)
    step = make_eval_step(PROTOCOLS["clean"](Linear(CLASSES), CONFIG), mesh)
    step = partial(step, classes=np.array([True, False, True]))
    found = evaluate(step, variables, batches({**examples, "label": labels}, 8), mesh)
    means = [hits[labels == label].mean() for label in (0, 2)]
    assert found["clean"] == pytest.approx(np.mean(means), abs=1e-6)
    assert found["clean_plain"] == pytest.approx(hits.mean(), abs=1e-6)


def test_without_any_mask_core_accuracy_is_unknown(variables, examples):
    mesh = mesh_of(1)
    step = make_eval_step(PROTOCOLS["complement"](Linear(CLASSES), CONFIG), mesh)
    unmasked = {**examples, "has_mask": np.zeros(IMAGES, np.float32)}
    found = evaluate(step, variables, batches(unmasked, 7), mesh)
    assert found["images_with_core"] == 0
    of_clean = {"clean", "clean_plain", "worst_class", "ece", "images"}
    assert found.keys() == of_clean | {"images_with_core"}
    assert found["clean"] > 0


def test_evaluating_nothing_is_refused(variables):
    with pytest.raises(ValueError, match="no batches"):
        evaluate(lambda *_: {}, variables, [], mesh_of(1))


def test_noise_belongs_to_the_image_and_the_trial(examples):
    def views(batch, trial):
        batch = expand_batch(batch)
        region, _ = core_region(batch["core_mask"])
        return noisy_pair(batch, region, seed=SEED, trial=trial, sigma=SIGMA)

    def shown(places, trial, devices):
        batch = {key: value[places] for key, value in examples.items()}
        return jax.jit(views)(put_batch(batch, mesh_of(devices)), jnp.asarray(trial))

    first = shown(np.arange(8), 0, devices=8)
    for view, again in zip(first, shown(np.arange(16)[::-1], 0, devices=1), strict=True):
        np.testing.assert_allclose(again[::-1][:8], view, atol=1e-6)
    for view, other in zip(first, shown(np.arange(8), 1, devices=8), strict=True):
        assert float(abs(view - other).max()) > 0.1
    noises = np.asarray(first[0])[:2] - examples["image"][:2] / 255
    assert abs(noises[0] - noises[1]).max() > 0.1


def test_the_unknown_part_of_an_image_keeps_its_pixels(examples):
    batch = {key: jnp.asarray(value[7:8]) for key, value in examples.items()}
    # A core right beside the unknown left quarter: its dilation reaches over the border.
    mask = jnp.zeros((1, SIZE, SIZE), jnp.uint8).at[:, 8:16, 6:12].set(255)
    batch = expand_batch({**batch, "core_mask": mask})
    region, _ = core_region(batch["core_mask"])
    assert float(region[0, 12, 5, 0]) == 1.0
    for view in noisy_pair(batch, region, seed=0, trial=jnp.asarray(0), sigma=SIGMA):
        np.testing.assert_array_equal(view[:, :, :6], batch["image"][:, :, :6])
        assert float(abs(view - batch["image"])[:, :, 6:].max()) > 0.1


def test_dilation_equals_scipys():
    rng = np.random.default_rng(0)
    masks = rng.uniform(size=(3, 60, 48)) * (rng.uniform(size=(3, 60, 48)) < 0.002)
    masks[1, 0, 0] = masks[1, 59, 47] = 1.0
    expected = masks
    for _ in range(15):
        expected = np.stack(
            [ndimage.grey_dilation(m, footprint=PLUS, mode="constant") for m in expected]
        )
    found = dilate(jnp.asarray(masks[..., None], jnp.float32), 15)
    np.testing.assert_array_equal(found[..., 0], expected.astype(np.float32))


def test_dilation_reaches_as_far_for_every_image_size():
    assert [dilations(size) for size in (64, 112, 224, 448)] == [4, 8, 15, 30]


def test_core_region_is_the_dilated_mask_over_its_maximum():
    mask = np.zeros((2, 16, 16, 1), np.float32)
    mask[0, 8, 8], mask[0, 8, 3] = 0.5, 0.25
    region, present = core_region(jnp.asarray(mask))
    expected = np.zeros((16, 16))
    expected[6:11, 3], expected[8, 1:6] = 0.5, 0.5
    expected[6:11, 8], expected[8, 6:11] = 1.0, 1.0
    np.testing.assert_array_equal(region[0, ..., 0], expected)
    assert not region[1].any()
    assert present.tolist() == [1.0, 0.0]

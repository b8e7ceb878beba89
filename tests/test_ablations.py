"""The `ablations` protocol against numpy, and on models of which it is known what they look at."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluating import Linear, batches, evaluate, mesh_of
from ml_collections import ConfigDict
from scipy import ndimage

from corm_jax.protocols import PROTOCOLS, make_eval_step
from corm_jax.protocols.ablations import ABLATIONS
from corm_jax.protocols.views import ablated, core_region
from corm_jax.steps import expand_batch

SIZE, CLASSES, IMAGES = 24, 3, 19
PLUS = np.zeros((5, 5), bool)
PLUS[2, :] = PLUS[:, 2] = True
WITHOUT_MASK, EMPTY_MASK, HALF_KNOWN, FULL_CORE = (3, 11), 5, 8, 14


@pytest.fixture(scope="module")
def kernel():
    return np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, CLASSES))


@pytest.fixture(scope="module")
def examples():
    """Loaded examples with soft masks; each one's partner is the next, of whatever class."""
    rng = np.random.default_rng(1)
    masks = np.zeros((IMAGES, SIZE, SIZE), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, SIZE - 8, 2)
        mask[top : top + 8, left : left + 6] = rng.integers(1, 200, (8, 6))
    masks[EMPTY_MASK] = 0
    masks[FULL_CORE] = 77  # dilated over its maximum, the core is everything
    windows = np.tile(np.array([0, 0, 1, 1], np.float32), (IMAGES, 1))
    windows[HALF_KNOWN] = (0, -0.5, 1, 0.5)  # says nothing about the left half of the image
    images = {
        "image": rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8),
        "label": rng.integers(0, CLASSES, IMAGES).astype(np.int32),
        "id": np.arange(IMAGES, dtype=np.uint32),
        "weight": np.ones(IMAGES, np.float32),
        "has_mask": (~np.isin(np.arange(IMAGES), WITHOUT_MASK)).astype(np.float32),
        "mask_window": windows,
        "core_mask": masks,
    }
    return {**images, "partner": {key: np.roll(value, -1, 0) for key, value in images.items()}}


def regions(examples, index):
    """Returns (background, object) float64 [SIZE, SIZE, 1] of an image; None without a core."""
    valid = np.ones((SIZE, SIZE))
    if index == HALF_KNOWN:
        valid[:, : SIZE // 2] = 0
    core = examples["core_mask"][index] / 255 * valid
    if index in WITHOUT_MASK or not core.any():
        return None
    for _ in range(2):  # 15 * 24 / 224, rounded
        core = ndimage.grey_dilation(core, footprint=PLUS, mode="constant")
    core = core / core.max()
    return (valid * (1 - core))[..., None], (valid * core)[..., None]


def bounding_box(core):
    """Returns bool [SIZE, SIZE, 1]: the box of where a core is at least half."""
    rows, columns = np.nonzero(core >= 0.5)
    box = np.zeros((SIZE, SIZE, 1), bool)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box


def blurred(image, region):
    """Returns the image blurred by what it shows in the region."""

    def smooth(values):
        return ndimage.gaussian_filter(
            values, SIZE / 16, axes=(0, 1), mode="constant", truncate=SIZE
        )

    weight = smooth(region)
    return np.divide(smooth(image * region), weight, out=np.zeros_like(image), where=weight > 0)


def tiled(image, box):
    """Returns the image with the box tiled over, None where nothing is beside it."""
    rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    strips = [image[:top], image[bottom:], image[:, :left], image[:, right:]]
    strip = max(strips, key=np.size)
    if not strip.size:
        return None
    found = image.copy()
    for row in range(top, bottom):
        for column in range(left, right):
            if strip.shape[1] == SIZE:
                found[row, column] = strip[(row - top) % len(strip), column]
            else:
                found[row, column] = strip[row, (column - left) % strip.shape[1]]
    return found


def expected_views(examples, index):
    """Returns the views of an image that are counted, by name."""
    image = examples["image"][index] / 255
    if regions(examples, index) is None:
        return {}
    background, core = regions(examples, index)
    box = bounding_box(core[..., 0])
    valid = background + core
    views = {
        "grey_background": image * (1 - background) + 0.5 * background,
        "blurred_background": image * (1 - background) + blurred(image, background) * background,
        "grey_object": image * (1 - core) + 0.5 * core,
        "grey_box": np.where(box, image * (1 - valid) + 0.5 * valid, image),
    }
    tiles = tiled(image, box[..., 0])
    if tiles is not None:
        views["tiled_object"] = image * (1 - valid) + tiles * valid
    other = (index + 1) % IMAGES
    lent = regions(examples, other)
    same = examples["label"][other] == examples["label"][index]
    if lent is None or same or not lent[0].any():
        return views
    other_image, share = examples["image"][other] / 255, lent[0]
    mean = (other_image * share).sum(axis=(0, 1)) / share.sum()
    filled = other_image * share + mean * (1 - share)
    return {**views, "swapped_background": image * (1 - background) + filled * background}


def test_views_equal_a_numpy_computation(examples):
    batch = jax.tree.map(jnp.asarray, examples)
    expanded = expand_batch(batch)
    region, present = core_region(expanded["core_mask"])
    views, shown = jax.jit(ablated)(expanded, expand_batch(batch["partner"]), region)
    assert set(views) == set(ABLATIONS)
    for index in range(IMAGES):
        expected = expected_views(examples, index)
        assert bool(present[index]) == ("grey_object" in expected)
        for name, view in expected.items():
            np.testing.assert_allclose(views[name][index], view, atol=2e-6, err_msg=name)
        for name, view in views.items():
            if present[index]:
                assert bool(shown[name][index]) == (name in expected)
            if not shown[name][index]:
                np.testing.assert_array_equal(view[index], expanded["image"][index])
    assert not shown["swapped_background"][FULL_CORE - 1]  # which lends nothing
    assert not shown["tiled_object"][FULL_CORE]  # nothing is beside it
    # Neither all nor none of them are swapped, and what is unknown stays.
    assert 3 < shown["swapped_background"].sum() < IMAGES - 5
    for view in views.values():
        np.testing.assert_array_equal(
            view[HALF_KNOWN, :, : SIZE // 2], expanded["image"][HALF_KNOWN, :, : SIZE // 2]
        )


def measure(model, variables, examples, size=7, devices=1):
    mesh = mesh_of(devices)
    step = make_eval_step(PROTOCOLS["ablations"](model, ConfigDict()), mesh)
    return evaluate(step, variables, batches(examples, size), mesh)


@pytest.mark.parametrize(("size", "devices"), [(7, 1), (4, 1), (16, 8)])
def test_accuracies_are_numpys_at_any_batch_size(examples, kernel, size, devices):
    """Images without mask, those that cannot be swapped, and padding are not counted."""
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(CLASSES)}
    found = measure(Linear(CLASSES), {"params": {"Dense_0": layer}}, examples, size, devices)
    hits = {name: [[] for _ in range(CLASSES)] for name in ABLATIONS}
    for index in range(IMAGES):
        label = examples["label"][index]
        for name, view in expected_views(examples, index).items():
            hits[name][label].append((view.ravel() @ kernel).argmax() == label)
    expected = {
        name: np.mean([np.mean(of_class) for of_class in classes if of_class])
        for name, classes in hits.items()
    }
    number = sum(map(len, hits["swapped_background"]))
    assert found == pytest.approx({**expected, "images_swapped": number}, abs=1e-6)
    assert number < sum(map(len, hits["grey_object"])) == IMAGES - 3
    assert len({round(value, 6) for value in expected.values()}) >= 5  # the data tells them apart


class Pixel(nn.Module):
    """Sees the colour of one pixel alone: the class is the strongest of three channels."""

    place: int
    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images, *, train):
        return images[:, self.place, self.place], {}


@pytest.fixture(scope="module")
def coloured():
    """Four images a class: object and background both have the class's colour."""
    labels = np.repeat(np.arange(CLASSES), 4).astype(np.int32)
    images = np.full((len(labels), SIZE, SIZE, 3), 20, np.uint8)
    images[np.arange(len(labels)), :, :, labels] = 220
    masks = np.zeros((len(labels), SIZE, SIZE), np.uint8)
    masks[:, 8:16, 8:16] = 255
    one = {
        "image": images,
        "label": labels,
        "id": np.arange(len(labels), dtype=np.uint32),
        "weight": np.ones(len(labels), np.float32),
        "has_mask": np.ones(len(labels), np.float32),
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (len(labels), 1)),
        "core_mask": masks,
    }
    return {**one, "partner": {key: np.roll(value, 4, 0) for key, value in one.items()}}


def test_a_model_that_sees_the_background_alone_is_found_out(coloured):
    found = measure(Pixel(place=0), {}, coloured)
    # Of grey alone it always says class 0: chance.
    assert found == pytest.approx(
        {
            "swapped_background": 0.0,
            "grey_background": 1 / 3,
            "blurred_background": 1.0,
            "grey_object": 1.0,
            "grey_box": 1.0,
            "tiled_object": 1.0,
            "images_swapped": 12,
        }
    )


def test_a_model_that_sees_the_object_alone_is_found_out(coloured):
    found = measure(Pixel(place=SIZE // 2), {}, coloured)
    assert found == pytest.approx(
        {
            "swapped_background": 1.0,
            "grey_background": 1.0,
            "blurred_background": 1.0,
            "grey_object": 1 / 3,
            "grey_box": 1 / 3,
            "tiled_object": 1.0,
            "images_swapped": 12,
        }
    )


def test_without_any_mask_nothing_is_measured(coloured):
    unmasked = {**coloured, "has_mask": np.zeros(12, np.float32)}
    found = measure(Pixel(place=0), {}, unmasked)
    assert found == {"images_swapped": 0}


def test_without_another_class_only_the_swap_is_not_measured(coloured):
    alone = {**coloured, "partner": {k: v for k, v in coloured.items() if k != "partner"}}
    found = measure(Pixel(place=0), {}, alone)
    assert "swapped_background" not in found
    assert found["images_swapped"] == 0
    assert found["grey_background"] == pytest.approx(1 / 3)
    assert found["grey_object"] == 1.0

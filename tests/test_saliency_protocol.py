"""Saliency alignment: scores and maps against numpy and by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluating import Linear, batches, mesh_of
from ml_collections import ConfigDict

from corm_jax.adapters import TorchModel
from corm_jax.adapters import make_eval_step as torch_step
from corm_jax.errors import UserError
from corm_jax.protocols import PROTOCOLS, make_eval_step, measure
from corm_jax.protocols.saliency import (
    average_precision,
    delta_density,
    energy_inside,
    iou,
    maps,
)
from corm_jax.protocols.summary import summarize

SIZE, CLASSES, IMAGES = 8, 3, 7


class Pooled(nn.Module):
    """Two channels of maps, pooled, and a linear head: Grad-CAM and HiResCAM are known."""

    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images, *, train, maps_offset=None):
        assert not train
        features = images[:, ::2, ::2, :2]
        if maps_offset is not None:
            features += maps_offset
        logits = nn.Dense(self.num_classes, name="head")(features.mean(axis=(1, 2)))
        return logits, {"maps": features}


def test_scores_by_hand():
    saliency = jnp.asarray([[1.0, 0.5], [0.25, 0.0]])
    mask = jnp.asarray([[1.0, 0.25], [1.0, 0.0]])
    valid = jnp.ones((2, 2))
    assert float(iou(saliency, mask, valid)) == pytest.approx(1 / 3)
    assert float(energy_inside(saliency, mask, valid)) == pytest.approx(1.375 / 1.75)
    inside, outside = 1.375 / 2.25, 0.375 / 1.75
    assert float(delta_density(saliency, mask, valid)) == pytest.approx(inside - outside)
    # Recall 1/2 at the first pixel (precision 1), 1 at the third (precision 2/3).
    assert float(average_precision(saliency, mask, valid)) == pytest.approx((1 + 2 / 3) / 2)
    left = jnp.asarray([[1.0, 0.0], [1.0, 0.0]])  # nothing is known of the right column
    assert float(iou(saliency, mask, left)) == pytest.approx(1 / 2)
    assert float(energy_inside(saliency, mask, left)) == 1.0
    assert float(average_precision(saliency, mask, left)) == 1.0
    nothing = jnp.zeros((2, 2))
    for score in (iou, energy_inside, delta_density):
        assert float(score(nothing, mask, valid)) == 0.0


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_sums_precision_over_the_distinct_thresholds(levels):
    rng = np.random.default_rng(levels)
    for _ in range(5):
        saliency = rng.integers(0, levels, (12, 12)) / levels
        mask = rng.uniform(size=(12, 12)) < 0.3
        expected, recall = 0.0, 0.0
        for threshold in np.unique(saliency)[::-1]:
            chosen = saliency >= threshold
            expected += (chosen & mask).sum() / chosen.sum() * (chosen[mask].mean() - recall)
            recall = chosen[mask].mean()
        found = average_precision(
            *(jnp.asarray(values, jnp.float32) for values in (saliency, mask, np.ones((12, 12))))
        )
        assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    masks = np.zeros((IMAGES, SIZE, SIZE), np.uint8)
    masks[:, 2:6, 1:5] = 255
    masks[2] = 0
    masks[3] = 100  # nowhere half
    return {
        "image": rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8),
        "label": (np.arange(IMAGES) % CLASSES).astype(np.int32),
        "id": np.arange(IMAGES, dtype=np.uint32),
        "weight": np.ones(IMAGES, np.float32),
        "has_mask": (np.arange(IMAGES) != 1).astype(np.float32),
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (IMAGES, 1)),
        "core_mask": masks,
    }


def test_maps_of_a_model_are_those_computed_in_numpy(examples):
    kernel = np.random.default_rng(1).normal(size=(2, CLASSES))
    variables = {"params": {"head": {"kernel": jnp.asarray(kernel, jnp.float32)}}}
    variables["params"]["head"]["bias"] = jnp.zeros(CLASSES)
    images, label = examples["image"] / 255, examples["label"]
    found = maps(Pooled(), variables, jnp.asarray(images, jnp.float32), jnp.asarray(label))
    features = images[:, ::2, ::2, :2]
    weights = kernel[:, label].T / 16  # d logit / d map, the same everywhere
    cam = np.maximum((features * weights[:, None, None]).sum(-1), 0)
    for index in range(IMAGES):
        expected = np.asarray(jax.image.resize(cam[index], (SIZE, SIZE), "bilinear"))
        expected = expected / expected.max() if expected.max() else expected
        for method in ("grad_cam", "hires_cam"):
            np.testing.assert_allclose(found[method][index], expected, atol=1e-5)
        gradient = np.zeros((SIZE, SIZE))
        gradient[::2, ::2] = 1.0  # the largest of both channels, over itself
        np.testing.assert_allclose(found["input_gradient"][index], gradient, atol=1e-5)


def test_only_images_with_a_core_count_and_the_mean_is_over_classes(examples):
    kernel = np.random.default_rng(2).normal(size=(SIZE * SIZE * 3, CLASSES))
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(CLASSES)}
    mesh = mesh_of(1)
    step = make_eval_step(PROTOCOLS["saliency"](Linear(CLASSES), ConfigDict()), mesh)
    variables = {"params": {"Dense_0": layer}}
    found = summarize(measure(step, variables, batches(examples, 3), mesh))
    # A linear model's gradient is its kernel, whatever the image; it has no maps of activations.
    assert all(name.startswith("input_gradient") for name in found)
    inside = []
    for label in range(CLASSES):
        saliency = abs(kernel[:, label].reshape(SIZE, SIZE, 3)).max(-1)
        inside.append(saliency[2:6, 1:5].sum() / saliency.sum())
    # Of the classes 0, 1 and 2 the images 0 and 6, 4, and 5 are left: all have one mask.
    assert found["input_gradient_energy_inside"] == pytest.approx(np.mean(inside), abs=1e-6)


def test_a_model_of_another_library_is_refused_with_the_way_out():
    torch = pytest.importorskip("torch")
    from corm_jax.models.normalizer import Statistics

    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    statistics = Statistics((0.0,) * 3, (1.0,) * 3)
    model = TorchModel(module, num_classes=2, statistics=statistics, device="cpu")
    with pytest.raises(UserError, match="convert this one by"):
        torch_step("saliency", model, ConfigDict())

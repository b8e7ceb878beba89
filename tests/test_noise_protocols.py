"""The protocols under noise against numpy, image by image, with the same draws of noise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluating import batches, mesh_of
from ml_collections import ConfigDict
from scipy import ndimage

from corm_jax.losses.controls import move_at_random
from corm_jax.models.normalizer import Statistics
from corm_jax.protocols import PROTOCOLS, make_eval_step, measure
from corm_jax.protocols.noise import RANDOM_STREAM
from corm_jax.protocols.summary import curves, summarize

SIZE, CLASSES, IMAGES, TRIALS, SIGMA, SEED = 24, 3, 14, 4, 0.25, 5
CONFIG = ConfigDict({"eval": {"seed": SEED, "trials": TRIALS, "sigma": SIGMA}})
PLUS = np.zeros((5, 5), bool)
PLUS[2, :] = PLUS[:, 2] = True
STATISTICS = Statistics((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
WITHOUT_MASK, EMPTY_MASK, HALF_KNOWN = 3, 5, 8


class Normalized(nn.Module):
    """Logits linear in normalised pixels."""

    num_classes: int = CLASSES
    statistics: Statistics = STATISTICS

    @nn.compact
    def __call__(self, images, *, train):
        assert not train
        mean, std = (jnp.asarray(values) for values in self.statistics)
        inputs = ((images - mean) / std).reshape(len(images), -1)
        return nn.Dense(self.num_classes)(inputs), {}


@pytest.fixture(scope="module")
def kernel():
    return np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, CLASSES))


@pytest.fixture(scope="module")
def examples(kernel):
    """Loaded examples with soft masks; each one's spurious mask is the core mask of the next."""
    rng = np.random.default_rng(1)
    images = rng.integers(30, 226, (IMAGES, SIZE, SIZE, 3)).astype(np.uint8)
    labels = logits(images / 255, kernel).argmax(axis=1)
    masks = np.zeros((IMAGES, SIZE, SIZE), np.uint8)
    for mask in masks:
        top, left = rng.integers(0, SIZE - 10, 2)
        mask[top : top + 10, left : left + 7] = rng.integers(100, 256, (10, 7))
    masks[EMPTY_MASK] = 0
    windows = np.tile(np.array([0, 0, 1, 1], np.float32), (IMAGES, 1))
    windows[HALF_KNOWN] = (0, -0.5, 1, 0.5)  # says nothing about the left half of the image
    one = {
        "image": images,
        "label": labels.astype(np.int32),
        "id": rng.integers(0, 2**32, IMAGES, np.uint32),
        "weight": np.ones(IMAGES, np.float32),
        "has_mask": (np.arange(IMAGES) != WITHOUT_MASK).astype(np.float32),
        "mask_window": windows,
        "core_mask": masks,
    }
    spurious = {key: one[key] for key in ("has_mask", "core_mask", "mask_window")}
    spurious = {**one, **{key: np.roll(value, -1, 0) for key, value in spurious.items()}}
    return {**one, "spurious": spurious}


def logits(images, kernel):
    mean, std = (np.array(values) for values in STATISTICS)
    return ((images - mean) / std).reshape(len(images), -1) @ kernel


def key_of(identity, trial):
    key = jax.random.fold_in(jax.random.key(SEED), identity)
    return jax.random.fold_in(key, trial)


def mask_of(loaded, index):
    """Returns (mask, validity) float64 [SIZE, SIZE, 1] of a loaded batch's image."""
    valid = np.full((SIZE, SIZE, 1), loaded["has_mask"][index])
    if loaded["mask_window"][index][1] < 0:
        valid[:, : SIZE // 2] = 0
    return loaded["core_mask"][index][..., None] / 255 * valid, valid


def core_of(examples, index):
    """Returns (core region, validity) of `complement`; None without a core."""
    mask, valid = mask_of(examples, index)
    if not mask.any():
        return None
    region = mask[..., 0]
    for _ in range(2):  # 15 * 24 / 224, rounded
        region = ndimage.grey_dilation(region, footprint=PLUS, mode="constant")
    return (region / region.max())[..., None], valid


def hits(examples, kernel, region_of, *, sigma=SIGMA, trials=TRIALS, clip=True, radius=None):
    """Returns how often each image is right with noise in `region_of(index, trial)`; NaN if None.

    Args:
      examples: loaded.
      kernel: of the model.
      region_of: (index, trial) -> the noise's scale, or None where the image does not count.
      sigma: of the noise, a number or one for each channel.
      trials: draws.
      clip: to [0, 1].
      radius: L2 norm that the noise is scaled to, in place of sigma.
    """
    found = np.full(IMAGES, np.nan)
    for index in range(IMAGES):
        if region_of(index, 0) is None:
            continue
        found[index] = 0
        for trial in range(trials):
            key = key_of(examples["id"][index], trial)
            noise = np.asarray(jax.random.normal(key, (SIZE, SIZE, 3)), np.float64)
            noise *= region_of(index, trial)
            noise *= sigma if radius is None else radius / np.sqrt((noise**2).sum())
            view = examples["image"][index] / 255 + noise
            view = np.clip(view, 0, 1) if clip else view
            found[index] += logits(view[None], kernel).argmax() == examples["label"][index]
    return found


@pytest.fixture(scope="module")
def run(kernel, examples):
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(CLASSES)}
    variables = {"params": {"Dense_0": layer}}

    def run(name, size=5, devices=1):
        mesh = mesh_of(devices)
        step = make_eval_step(PROTOCOLS[name](Normalized(), CONFIG), mesh)
        return measure(step, variables, batches(examples, size), mesh)

    return run


def check(measured, expected, trials=TRIALS):
    """Compares every image's outcomes; returns the expected accuracies, mean over classes."""
    accuracies = {}
    for name, counts in expected.items():
        outcome, counted = measured.outcomes[name], ~np.isnan(counts)
        np.testing.assert_array_equal(outcome.number, trials * counted, err_msg=name)
        np.testing.assert_allclose(outcome.correct, np.nan_to_num(counts), atol=1e-6, err_msg=name)
        accuracies[name] = balanced(counts, measured.label) / trials
    found = summarize(measured)
    assert {k: found[k] for k in expected} == pytest.approx(accuracies, abs=1e-6)
    # All are told apart, and none is trivial.
    assert len(set(accuracies.values())) > 1 or len(accuracies) == 1
    return found


def balanced(counts, label):
    """Returns the mean over classes of the mean of what counts; classes without any do not."""
    counted = ~np.isnan(counts)
    return np.mean([counts[counted & (label == c)].mean() for c in np.unique(label[counted])])


def rcs(core, spurious):
    mean = (core + spurious) / 2
    return (core - spurious) / (2 * min(mean, 1 - mean))


def annotated_regions(examples):
    def of(loaded):
        def region(index, trial):
            mask = mask_of(loaded, index)[0]
            return mask if mask.any() else None

        return region

    return of(examples["spurious"]), of(examples)


def test_annotated(run, examples, kernel):
    on_spurious, on_core = annotated_regions(examples)
    found = check(
        run("annotated"),
        {
            "annotated_core": hits(examples, kernel, on_spurious, trials=1),
            "annotated_spurious": hits(examples, kernel, on_core, trials=1),
        },
        trials=1,
    )
    expected = rcs(found["annotated_core"], found["annotated_spurious"])
    assert found["annotated_rcs"] == pytest.approx(expected)


def test_normalized(run, examples, kernel):
    on_spurious, on_core = annotated_regions(examples)
    how = {"sigma": 2 * np.array(STATISTICS.std), "clip": False}
    check(
        run("normalized"),
        {
            "normalized_core": hits(examples, kernel, on_spurious, **how),
            "normalized_spurious": hits(examples, kernel, on_core, **how),
        },
    )


@pytest.mark.parametrize(("size", "devices"), [(5, 1), (16, 8)])
def test_box(run, examples, kernel, size, devices):
    def box(index, outside):
        if (found := core_of(examples, index)) is None:
            return None
        core, valid = found
        rows, columns = np.nonzero(core[..., 0] >= 0.5)
        inside = np.zeros((SIZE, SIZE, 1))
        inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
        return valid * (1 - inside if outside else inside)

    expected = {}
    for sigma in (0.25, 0.5, 0.75):
        for name, outside in (("core", True), ("spurious", False)):
            expected[f"box_{name}_{sigma:g}"] = hits(
                *(examples, kernel, lambda index, _, outside=outside: box(index, outside)),
                sigma=sigma,
                clip=False,
            )
    check(run("box", size, devices), expected)


def test_rfs_by_both_norms(run, examples, kernel):
    def region(outside):
        def of(index, trial):
            mask, valid = mask_of(examples, index)
            return (valid - mask if outside else mask) if mask.any() else None

        return of

    radius = SIGMA * np.sqrt(SIZE * SIZE * 3 / 2)
    background, foreground = region(True), region(False)
    found = check(
        run("rfs"),
        {
            "background_noise": hits(examples, kernel, background),
            "foreground_noise": hits(examples, kernel, foreground),
            "background_noise_l2": hits(examples, kernel, background, radius=radius),
            "foreground_noise_l2": hits(examples, kernel, foreground, radius=radius),
        },
    )
    for norm in ("", "_l2"):
        expected = rcs(found[f"background_noise{norm}"], found[f"foreground_noise{norm}"])
        assert found[f"rfs{norm}"] == pytest.approx(expected)


def complement(examples, name, scale=1.0):
    def of(index, trial):
        if (found := core_of(examples, index)) is None:
            return None
        core, valid = found
        return valid * ((1 - core) if name == "core" else core) * scale

    return of


def test_sigma_curves_and_their_area(run, examples, kernel):
    sigmas = (0.0, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0)
    expected = {
        f"{name}_{sigma:g}": hits(
            examples, kernel, complement(examples, name), sigma=sigma, trials=3
        )
        for name in ("core", "spurious")
        for sigma in sigmas
    }
    measured = run("sigma_curve")
    found = summarize(measured)
    drawn = curves(measured)
    for name in ("core", "spurious"):
        heights = []
        for sigma in sigmas:
            counts = expected[f"{name}_{sigma:g}"]
            np.testing.assert_allclose(
                measured.outcomes[f"{name}_{sigma:g}"].correct, np.nan_to_num(counts), atol=1e-6
            )
            heights.append(balanced(counts, measured.label) / 3)
        assert drawn[name]["sigma"] == list(sigmas)
        assert drawn[name]["accuracy"] == pytest.approx(heights, abs=1e-6)
        trapezoids = [
            (sigmas[i + 1] - sigmas[i]) * (heights[i] + heights[i + 1]) / 2 for i in range(8)
        ]
        assert found[f"{name}_area"] == pytest.approx(sum(trapezoids), abs=1e-6)


def test_controls(run, examples, kernel):
    def whole(name):
        def of(index, trial):
            if (region := complement(examples, name)(index, trial)) is None:
                return None
            valid = core_of(examples, index)[1]
            return valid * np.sqrt((region**2).sum() / valid.sum())

        return of

    def moved(name):
        def of(index, trial):
            if (region := complement(examples, name)(index, trial)) is None:
                return None
            key = key_of(examples["id"][index], RANDOM_STREAM + trial)
            found = np.asarray(move_at_random(jnp.asarray(region, jnp.float32), key), np.float64)
            assert found.sum() == pytest.approx(region.sum(), rel=1e-5)
            return found

        return of

    expected = {
        f"whole_{name}": hits(examples, kernel, whole(name)) for name in ("core", "spurious")
    }
    expected |= {
        f"random_{name}": hits(examples, kernel, moved(name)) for name in ("core", "spurious")
    }
    check(run("controls"), expected)

"""Bootstrap intervals against theory, and paired differences."""

import math

import numpy as np
import pytest

from corm_jax.errors import UserError
from corm_jax.metrics import Outcome
from corm_jax.protocols.summary import summarize
from corm_jax.protocols.types import Measured
from corm_jax.statistics import differences, intervals, is_saturated


def make(label, seed=0, **hits):
    """Returns measured images: each outcome is (right predictions, predictions) of each."""
    label = np.asarray(label)
    ids = np.random.default_rng(seed).permutation(len(label)).astype(np.uint32)
    outcomes = {name: Outcome(*map(np.float32, pair)) for name, pair in hits.items()}
    return Measured(ids, label, np.ones(len(label), np.float32), outcomes)


def draw(rates, images, trials=1, seed=0):
    """Returns (labels, right predictions) of as many images of each class, by its rate."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(rates)), images)
    return label, rng.binomial(trials, np.repeat(rates, images))


def test_intervals_over_images_have_the_width_of_theory():
    label, right = draw([0.9, 0.6, 0.3], 400)
    found = intervals(make(label, clean=(right, np.ones_like(right))))["clean"]["images"]
    rates = [right[label == c].mean() for c in range(3)]
    error = math.sqrt(sum(p * (1 - p) / 400 for p in rates)) / 3
    assert sum(found) / 2 == pytest.approx(np.mean(rates), abs=0.1 * error + 1e-3)
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_intervals_over_classes_have_the_width_of_theory():
    rates = np.random.default_rng(1).uniform(0.2, 1, 200)
    label, right = draw(rates, 50, trials=100)
    found = intervals(make(label, clean=(right, np.full_like(right, 100))))["clean"]["classes"]
    means = np.array([right[label == c].mean() / 100 for c in range(200)])
    error = means.std(ddof=1) / math.sqrt(200)
    assert sum(found) / 2 == pytest.approx(means.mean(), abs=0.2 * error)
    assert found[1] - found[0] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_the_order_of_the_images_does_not_matter():
    label, right = draw([0.8, 0.4], 30)
    measured = make(label, clean=(right, np.ones_like(right)))
    order = np.random.default_rng(3).permutation(60)
    outcome = measured.outcomes["clean"]
    shuffled = Measured(
        measured.id[order],
        measured.label[order],
        measured.weight[order],
        {"clean": Outcome(outcome.correct[order], outcome.number[order])},
    )
    assert intervals(shuffled) == intervals(measured)
    assert differences(measured, shuffled) == {
        name: dict.fromkeys(("images", "classes"), (0, 0)) for name in ("clean", "clean_plain")
    }


def test_images_that_do_not_count_and_classes_without_any_are_left_out():
    label = [0, 0, 0, 1, 1]
    core = ([2, 0, 0, 0, 0], [2, 0, 0, 0, 0])  # one image alone, always right
    found = intervals(make(label, core=core, spurious=([0] * 5, [2, 0, 0, 0, 0])))
    assert found["core"] == {"images": (1, 1), "classes": (1, 1)}
    assert found["rcs"] == {"images": (1, 1), "classes": (1, 1)}  # (1 - 0) / (2 * 1/2)
    everything = make(label, core=([2, 2, 2, 0, 0], [2, 2, 2, 0, 0]), clean=([1] * 5, [1] * 5))
    assert intervals(everything)["core"] == {"images": (1, 1), "classes": (1, 1)}


def test_rcs_is_that_of_the_resampled_accuracies():
    label, core = draw([0.9, 0.8], 200, trials=10)
    _, spurious = draw([0.5, 0.6], 200, trials=10, seed=1)
    ten = np.full_like(core, 10)
    measured = make(label, core=(core, ten), spurious=(spurious, ten), with_core=(ten, ten))
    low, high = intervals(measured)["rcs"]["images"]
    assert low < summarize(measured)["rcs"] < high
    assert high - low < 0.2


def test_paired_differences_are_narrower_than_two_intervals():
    label, before = draw([0.7, 0.5], 300)
    after = before.copy()
    after[np.flatnonzero(before == 0)[:30]] = 1  # the same model, but for 30 images more
    ones = np.ones_like(before)
    first, second = make(label, clean=(before, ones)), make(label, clean=(after, ones))
    low, high = differences(first, second)["clean"]["images"]
    assert 0 < low < 30 / 600 < high
    alone = intervals(first)["clean"]["images"]
    assert high - low < 0.6 * (alone[1] - alone[0])


def test_other_images_cannot_be_paired():
    first, second = make([0, 1], clean=([1, 1], [1, 1])), make([0], clean=([1], [1]))
    with pytest.raises(UserError, match="not of the same images"):
        differences(first, second)


def test_saturation_is_at_both_ends():
    assert is_saturated(0.97, 0.96)
    assert is_saturated(0.02, 0.05)
    assert not is_saturated(0.98, 0.8)

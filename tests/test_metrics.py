"""Metrics against values computed by hand."""

import math

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corm_jax.metrics import ClassAccuracy, Outcome, relative_core_sensitivity


def count(correct, label, weight=None, num_classes=3):
    weight = [1.0] * len(label) if weight is None else weight
    number = jnp.asarray(weight, jnp.float32)
    return ClassAccuracy.from_model_output(
        outcome=Outcome(number * jnp.asarray(correct, jnp.float32), number),
        label=jnp.asarray(label, jnp.int32),
        num_classes=num_classes,
    )


def test_classes_weigh_the_same_however_many_images_they_have():
    # Class 0: 1 of 1; class 1: 1 of 3.
    metric = count([True, True, False, False], [0, 1, 1, 1], num_classes=2)
    assert metric.compute() == pytest.approx((1 + 1 / 3) / 2)
    assert metric.compute_plain() == 0.5
    assert metric.number() == 4


def test_a_class_without_images_is_left_out():
    assert count([True, False], [0, 2], num_classes=3).compute() == 0.5


def test_weight_zero_counts_for_nothing():
    metric = count([True, False, True], [0, 0, 1], weight=[1, 0, 0])
    assert (metric.compute(), metric.compute_plain(), metric.number()) == (1, 1, 1)


def test_no_images_have_no_accuracy():
    metric = count([True], [0], weight=[0])
    assert math.isnan(metric.compute())
    assert math.isnan(metric.compute_plain())


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=8, max_size=8),
    st.integers(1, 7),
)
def test_merged_parts_equal_the_whole(examples, cut):
    correct, label = zip(*examples, strict=True)
    parts = count(correct[:cut], label[:cut]).merge(count(correct[cut:], label[cut:]))
    whole = count(correct, label)
    assert parts.compute() == whole.compute()
    assert parts.compute_plain() == whole.compute_plain() == sum(correct) / 8


@pytest.mark.parametrize(
    ("core", "spurious", "rcs"),
    [
        (0.8, 0.6, 1 / 3),  # a = 0.7, 0.2 / (2 * 0.3)
        (0.3, 0.1, 0.5),  # a = 0.2, 0.2 / (2 * 0.2)
        (0.1, 0.3, -0.5),
        (0.4, 0.4, 0.0),
        (0.5, 0.0, 1.0),  # all the room that a = 0.25 leaves
        (0.5, 1.0, -1.0),
        (0.0, 0.0, 0.0),  # no room at all
        (1.0, 1.0, 0.0),
    ],
)
def test_relative_core_sensitivity(core, spurious, rcs):
    assert relative_core_sensitivity(core, spurious) == pytest.approx(rcs)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_relative_core_sensitivity_is_bounded_and_odd(core, spurious):
    core, spurious = core / 1000, spurious / 1000
    rcs = relative_core_sensitivity(core, spurious)
    assert abs(rcs) <= 1 + 1e-9
    assert relative_core_sensitivity(spurious, core) == -rcs


def test_relative_core_sensitivity_of_nothing_measured_is_unknown():
    assert math.isnan(relative_core_sensitivity(float("nan"), float("nan")))

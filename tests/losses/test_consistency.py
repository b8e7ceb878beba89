"""Divergence of predictions on corrupted images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from linear_model import KEY, VIEW, WEIGHTS, linear, make_batch, softmax

from corm_jax.losses.consistency import consistency
from corm_jax.losses.views import corrupted_view


@pytest.mark.parametrize("corruption", ["gaussian_noise", "grey", "blur"])
def test_divergence_is_scipys_relative_entropy(corruption):
    batch, settings = make_batch(), VIEW | {"corruption": corruption}
    weights = 0.2 * WEIGHTS  # predictions that are not certain
    losses, _ = consistency(linear(weights), batch, KEY, clean_gradient=False, **settings)
    view = corrupted_view(batch, KEY, **settings)
    p, q = softmax(batch["image"], weights), softmax(view, weights)
    expected = scipy.stats.entropy(p, q, axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-3, atol=1e-6)
    assert losses[0] == 0  # no mask
    assert (losses[1:] > 1e-5).all()


@pytest.mark.parametrize("clean_gradient", [False, True])
def test_the_clean_side_is_a_fixed_target_or_not(clean_gradient):
    batch = make_batch()

    def mean(weights):
        settings = VIEW | {"clean_gradient": clean_gradient}
        return consistency(linear(weights), batch, KEY, **settings)[0].mean()

    x = np.asarray(batch["image"], np.float64).reshape(4, -1)
    view = np.asarray(corrupted_view(batch, KEY, **VIEW), np.float64).reshape(4, -1)
    p, q = softmax(x), softmax(view)
    # dKL/df(view) = q - p; dKL/df(x) = p * (log p/q - KL).
    expected = view.T @ (q - p) / 4
    if clean_gradient:
        ratio = np.log(p / q)
        expected += x.T @ (p * (ratio - (p * ratio).sum(axis=1, keepdims=True))) / 4
    found = jax.jit(jax.grad(mean))(WEIGHTS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_predictions_that_are_certain_have_finite_divergence_and_gradient():
    batch = make_batch()

    def mean(weights):
        settings = VIEW | {"clean_gradient": True}
        return consistency(linear(weights), batch, KEY, **settings)[0].mean()

    value, gradient = jax.value_and_grad(mean)(1000 * WEIGHTS)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_masks_are_unused_on_the_whole_image():
    batch = make_batch()
    settings = VIEW | {"region": "whole", "clean_gradient": False}
    losses, _ = consistency(linear(), batch, KEY, **settings)
    without = batch | {"non_core": jnp.zeros_like(batch["non_core"])}
    np.testing.assert_array_equal(consistency(linear(), without, KEY, **settings)[0], losses)
    assert (losses > 0).all()

"""The exact GELU and its derivatives of both modes against SciPy's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from corm_jax.models.gelu import gelu

POINTS = np.concatenate([np.linspace(-12, 12, 193), [-1e4, 1e4]])
STEP = 1e-4


def exact(x: np.ndarray) -> np.ndarray:
    return x * norm.cdf(x)


def slope(x: np.ndarray) -> np.ndarray:
    return (exact(x + STEP) - exact(x - STEP)) / (2 * STEP)


def curvature(x: np.ndarray) -> np.ndarray:
    return (exact(x + STEP) - 2 * exact(x) + exact(x - STEP)) / STEP**2


def test_value_is_scipys():
    np.testing.assert_allclose(gelu(jnp.asarray(POINTS, jnp.float32)), exact(POINTS), atol=1e-6)


@pytest.mark.parametrize("first", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("second", [jax.grad, jax.jacfwd])
def test_derivatives_of_every_mode_are_finite_differences(first, second):
    points = jnp.asarray(POINTS[:-2], jnp.float32)
    np.testing.assert_allclose(jax.vmap(first(gelu))(points), slope(POINTS[:-2]), atol=1e-6)
    found = jax.vmap(second(first(gelu)))(points)
    np.testing.assert_allclose(found, curvature(POINTS[:-2]), atol=1e-5)


def test_derivatives_stay_finite_far_out():
    far = jnp.asarray(POINTS[-2:], jnp.float32)
    np.testing.assert_array_equal(jax.vmap(jax.grad(gelu))(far), [0.0, 1.0])
    np.testing.assert_array_equal(jax.vmap(jax.grad(jax.grad(gelu)))(far), [0.0, 0.0])


def test_half_precision_keeps_its_dtype():
    assert jax.vmap(jax.grad(gelu))(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16

"""The one Gaussian noise of the code base."""

import jax
import jax.numpy as jnp
import numpy as np

from corm_jax.corruptions import gaussian_noise


def test_noise_has_the_deviation_that_the_region_scales():
    images = jnp.full((4, 64, 64, 3), 0.5)
    region = jnp.concatenate([jnp.full((4, 64, 32, 1), 1.0), jnp.full((4, 64, 32, 1), 0.5)], axis=2)
    change = np.asarray(gaussian_noise(images, region, jax.random.key(0), sigma=0.1)) - 0.5
    for half, deviation in ((change[:, :, :32], 0.1), (change[:, :, 32:], 0.05)):
        # 24,576 draws: standard errors of 0.6 % and 0.5 % of the deviation.
        assert abs(half.mean()) < 4 * deviation / np.sqrt(half.size)
        assert abs(half.std() / deviation - 1) < 4 / np.sqrt(2 * half.size)
    independent = np.corrcoef(change.reshape(-1, 3).T) - np.eye(3)
    assert abs(independent).max() < 0.03  # each colour has a draw of its own


def test_pixels_outside_the_region_stay_exactly():
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    region = jnp.zeros((2, 8, 8, 1)).at[:, :4].set(1.0)
    noisy = gaussian_noise(images, region, jax.random.key(0), sigma=0.25)
    np.testing.assert_array_equal(noisy[:, 4:], images[:, 4:])
    assert (np.asarray(noisy[:, :4]) != np.asarray(images[:, :4])).all(axis=(2, 3)).any()


def test_result_is_clipped_to_the_range_of_images():
    images = jnp.concatenate([jnp.zeros((1, 32, 32, 3)), jnp.ones((1, 32, 32, 3))])
    noisy = np.asarray(
        gaussian_noise(images, jnp.ones((2, 32, 32, 1)), jax.random.key(0), sigma=2.0)
    )
    assert noisy.min() == 0.0
    assert noisy.max() == 1.0
    # Half of the draws point out of the range and are clipped to its end.
    assert abs((noisy[0] == 0).mean() - 0.5) < 0.04
    assert abs((noisy[1] == 1).mean() - 0.5) < 0.04

"""Cross entropy on corrupted views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import KEY, SIZE, VIEW, by_hand_cross_entropy, linear, make_batch

from corm_jax.losses.noisy import noisy_cross_entropy, noisy_view
from corm_jax.losses.terms import cross_entropy
from corm_jax.losses.views import corrupted_view


def reproduced_noise(batch, key=KEY):
    return jax.random.normal(jax.random.split(key, 3)[0], batch["image"].shape)


def many(size=400, value=0.5):
    """Returns a batch of grey images, all background."""
    shape = (size, SIZE, SIZE, 1)
    batch = make_batch(size=size) | {"non_core": jnp.ones(shape), "core_mask": jnp.zeros(shape)}
    return batch | {"image": jnp.full((size, SIZE, SIZE, 3), value)}


def test_noisy_view_adds_the_keys_noise_outside_the_core_alone():
    batch = make_batch()
    view = noisy_view(batch, KEY, sigma=0.25, probability=1.0)
    noise = np.asarray(reproduced_noise(batch))
    expected = np.clip(batch["image"] + 0.25 * noise * np.asarray(batch["non_core"]), 0, 1)
    np.testing.assert_allclose(view, expected, atol=1e-6)
    core = np.broadcast_to(batch["non_core"] == 0, view.shape)
    np.testing.assert_array_equal(np.asarray(view)[core], np.asarray(batch["image"])[core])
    assert float(abs(view - batch["image"])[1:].max()) > 0.1


@pytest.mark.parametrize(
    ("region", "weights"),
    [("non_core", "non_core"), ("core", "core_mask"), ("whole", None)],
)
def test_noise_lies_in_the_region(region, weights):
    batch = make_batch()
    view = corrupted_view(batch, KEY, **VIEW | {"region": region})
    where = 1.0 if weights is None else np.asarray(batch[weights])
    expected = np.clip(batch["image"] + 0.25 * np.asarray(reproduced_noise(batch)) * where, 0, 1)
    np.testing.assert_allclose(view, expected, atol=1e-6)


def test_probability_decides_for_each_image_as_a_whole():
    batch = many()
    always = np.asarray(noisy_view(batch, KEY, sigma=0.25, probability=1.0))
    half = np.asarray(noisy_view(batch, KEY, sigma=0.25, probability=0.5))
    noisy = (half == always).all(axis=(1, 2, 3))
    clean = (half == np.asarray(batch["image"])).all(axis=(1, 2, 3))
    assert (noisy ^ clean).all()
    assert abs(noisy.mean() - 0.5) < 4 * 0.5 / np.sqrt(400)
    never = noisy_view(batch, KEY, sigma=0.25, probability=0.0)
    np.testing.assert_array_equal(never, batch["image"])


def test_probability_per_batch_decides_once_for_all():
    batch = many(size=3)
    settings = VIEW | {"probability": 0.3, "probability_per": "batch"}
    view = jax.jit(lambda key: corrupted_view(batch, key, **settings))
    corrupted = []
    for key in jax.random.split(jax.random.key(0), 200):
        changed = (np.asarray(view(key)) != 0.5).any(axis=(1, 2, 3))
        assert changed.all() or not changed.any()
        corrupted.append(changed[0])
    assert abs(np.mean(corrupted) - 0.3) < 4 * np.sqrt(0.21 / 200)


def test_sigma_is_drawn_uniformly_for_each_image():
    batch = many(size=2000)
    settings = VIEW | {"sigma": 0.02, "sigma_high": 0.1}
    noise = np.asarray(reproduced_noise(batch))
    change = np.asarray(corrupted_view(batch, KEY, **settings)) - 0.5
    sigmas = (change * noise).sum(axis=(1, 2, 3)) / (noise**2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(change, sigmas[:, None, None, None] * noise, atol=1e-5)
    assert 0.02 <= sigmas.min() < 0.021
    assert 0.099 < sigmas.max() <= 0.1
    assert abs(sigmas.mean() - 0.06) < 4 * 0.08 / np.sqrt(12 * 2000)
    assert abs(sigmas.std() - 0.08 / np.sqrt(12)) < 0.001


@pytest.mark.parametrize(("choice", "first"), [("clean", 1.0), ("zero", 0.0)])
def test_noisy_cross_entropy_is_that_of_the_noisy_view(choice, first):
    batch = make_batch()
    losses, _ = noisy_cross_entropy(linear(), batch, KEY, without_mask=choice, **VIEW)
    view = np.clip(
        np.asarray(batch["image"] + 0.25 * reproduced_noise(batch) * batch["non_core"]), 0, 1
    )
    expected = by_hand_cross_entropy(view, batch["target"])
    expected[0] *= first  # the image without mask
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("silent", [{"sigma": 0.0}, {"probability": 0.0}])
def test_without_noise_noisy_cross_entropy_is_the_clean_one(silent):
    arguments = VIEW | {"without_mask": "clean"} | silent
    batch = make_batch()
    np.testing.assert_array_equal(
        noisy_cross_entropy(linear(), batch, KEY, **arguments)[0],
        cross_entropy(linear(), batch, KEY)[0],
    )

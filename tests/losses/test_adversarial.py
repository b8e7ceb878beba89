"""Projected gradient descent, against one in numpy on a linear model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_model import BATCH, KEY, SIZE, WEIGHTS, linear, make_batch, softmax

from corm_jax.losses.adversarial import adversarial, attack
from corm_jax.losses.terms import cross_entropy

ATTACK = {"norm": "linf", "radius": 0.1, "step_size": 0.04, "steps": 4, "random_start": False}
L2 = ATTACK | {"norm": "l2", "radius": 0.6, "step_size": 0.25}
TERM = {"region": "non_core", "without_mask": "zero"}


def attacked(batch, settings, key=KEY, forward=None):
    """Returns (attacked images, what the attack put in where the region is 1)."""
    arguments = (forward or linear(), batch["image"], batch["target"], batch["non_core"], key)
    return np.asarray(attack(*arguments, **settings))


def numpy_attack(batch, settings):
    """Returns attacked images in float64: dL/dx = W (p - t)."""
    x, region = (np.asarray(batch[k], np.float64) for k in ("image", "non_core"))
    change = np.zeros_like(x)
    for _ in range(settings["steps"]):
        error = softmax(x + region * change) - np.asarray(batch["target"])
        gradient = region * (error @ np.asarray(WEIGHTS, np.float64).T).reshape(x.shape)
        if settings["norm"] == "linf":
            change = change + settings["step_size"] * np.sign(gradient)
            change = np.clip(change, -settings["radius"], settings["radius"])
        else:
            for index in range(len(x)):
                length = np.linalg.norm(gradient[index])
                if length > 0:
                    change[index] += settings["step_size"] * gradient[index] / length
                length = np.linalg.norm(change[index])
                change[index] *= min(1, settings["radius"] / length) if length else 1
        inside = region > 0
        inverse = np.divide(1, region, where=inside, out=np.zeros_like(region))
        change = np.where(inside, (np.clip(x + region * change, 0, 1) - x) * inverse, 0)
    return x + region * change


@pytest.mark.parametrize("settings", [ATTACK, L2], ids=["linf", "l2"])
def test_attack_is_that_of_numpy(settings):
    batch = make_batch()
    found = attacked(batch, settings)
    np.testing.assert_allclose(found, numpy_attack(batch, settings), atol=2e-5)
    assert abs(found - np.asarray(batch["image"]))[1:].max() > 0.05


def test_one_step_on_two_by_two_pixels():
    # f = (3 x00 - x01 - 2 x10 + x11, 0), target class 0: the loss falls with f.
    weights = jnp.asarray([3.0, -1.0, -2.0, 1.0])

    def forward(images):
        first = images[..., 0].reshape(1, 4) @ weights
        return jnp.stack([first, jnp.zeros(1)], axis=1), {}

    image = jnp.asarray([[0.5, 0.95], [0.5, 0.5]])[None, :, :, None]
    region = jnp.asarray([[1.0, 1.0], [0.0, 0.5]])[None, :, :, None]
    arguments = (forward, image, jnp.asarray([[1.0, 0.0]]), region, KEY)
    linf = attack(*arguments, **ATTACK | {"step_size": 0.1, "steps": 1})
    np.testing.assert_allclose(linf[0, ..., 0], [[0.4, 1.0], [0.5, 0.45]], rtol=1e-6)
    # r * g is along (-3, 1, 0, -0.5), of length sqrt(10.25).
    l2 = attack(*arguments, **L2 | {"step_size": 0.1, "steps": 1})
    unit = 0.1 / np.sqrt(10.25)
    expected = [[0.5 - 3 * unit, 0.95 + unit], [0.5, 0.5 - 0.5 * 0.5 * unit]]
    np.testing.assert_allclose(l2[0, ..., 0], expected, rtol=1e-6)


@pytest.mark.parametrize("settings", [ATTACK, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_attacks_stay_in_the_ball_the_range_and_the_region(settings, random_start):
    batch = make_batch(size=16)
    batch["non_core"] = jnp.ceil(batch["non_core"])
    found = attacked(batch, settings | {"step_size": 1.0, "random_start": random_start})
    change = found - np.asarray(batch["image"])
    assert found.min() >= 0
    assert found.max() <= 1
    sizes = abs(change).max(axis=(1, 2, 3))
    if settings["norm"] == "l2":
        sizes = np.sqrt((change.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    assert sizes.max() <= settings["radius"] * (1 + 1e-5)
    assert sizes.max() > 0.9 * settings["radius"]
    assert not change[np.broadcast_to(batch["non_core"] == 0, change.shape)].any()


@pytest.mark.parametrize("settings", [ATTACK, L2], ids=["linf", "l2"])
def test_random_starts_fill_the_ball(settings):
    batch = make_batch(size=400) | {"image": jnp.full((400, SIZE, SIZE, 3), 0.5)}
    batch["non_core"] = jnp.ones((400, SIZE, SIZE, 1))
    start = attacked(batch, settings | {"step_size": 0.0, "steps": 1, "random_start": True}) - 0.5
    if settings["norm"] == "linf":
        assert abs(start.mean()) < 4 * 0.1 / np.sqrt(3 * start.size)
        assert abs(start.std() - 0.1 / np.sqrt(3)) < 0.001
    else:
        lengths = np.linalg.norm(start.reshape(400, -1), axis=1)
        assert abs(lengths.mean() - 0.3) < 4 * 0.6 / np.sqrt(12 * 400)
        assert lengths.max() <= 0.6 * (1 + 1e-5)


@pytest.mark.parametrize("settings", [ATTACK, L2], ids=["linf", "l2"])
def test_attack_raises_the_loss(settings):
    batch = make_batch()
    losses, _ = adversarial(linear(), batch, KEY, **settings, **TERM)
    clean, _ = cross_entropy(linear(), batch, KEY)
    assert losses[0] == 0
    assert (losses[1:] > clean[1:] + 0.05).all()


@pytest.mark.parametrize("settings", [ATTACK, L2], ids=["linf", "l2"])
def test_gradient_takes_the_attack_as_given(settings):
    batch = make_batch()

    def mean(weights):
        return adversarial(linear(weights), batch, KEY, **settings, **TERM)[0].mean()

    images = jnp.asarray(attacked(batch, settings))

    def given(weights):
        losses = optax.softmax_cross_entropy(linear(weights)(images)[0], batch["target"])
        return (losses * batch["has_mask"]).mean()

    found, expected = jax.jit(jax.grad(mean))(WEIGHTS), jax.grad(given)(WEIGHTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [ATTACK, L2], ids=["linf", "l2"])
def test_a_flat_loss_leaves_images_as_they_are(settings):
    batch = make_batch()
    found = attacked(batch, settings, forward=linear(jnp.zeros_like(WEIGHTS)))
    np.testing.assert_array_equal(found, batch["image"])


@pytest.mark.parametrize("settings", [ATTACK, L2], ids=["linf", "l2"])
def test_images_are_attacked_independently(settings):
    batch = make_batch()
    order = jnp.asarray([2, 0, 3, 1])
    permuted = {key: value[order] for key, value in batch.items()}
    losses, _ = adversarial(linear(), batch, KEY, **settings, **TERM)
    moved, _ = adversarial(linear(), permuted, KEY, **settings, **TERM)
    np.testing.assert_allclose(moved, losses[order], rtol=1e-6)
    assert len(losses) == BATCH


def test_gradients_too_small_to_square_still_have_a_direction():
    batch = make_batch()
    scale = 1e-25
    found = attacked(batch, L2 | {"steps": 1}, forward=linear(scale * WEIGHTS)) - batch["image"]
    expected = np.asarray(batch["non_core"]) > 0
    assert (abs(np.asarray(found)).sum(axis=(1, 2, 3))[1:] > 0.1).all()
    assert not np.asarray(found)[~np.broadcast_to(expected, found.shape)].any()

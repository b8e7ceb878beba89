"""Loss terms on a linear model, where everything can be derived by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import (
    BATCH,
    BIAS,
    CLASSES,
    KEY,
    PIXELS,
    SIZE,
    WEIGHTS,
    by_hand_cross_entropy,
    linear,
    make_batch,
    softmax,
)

from corm_jax.config import base_config
from corm_jax.losses.gradients import input_gradient
from corm_jax.losses.noisy import noisy_view
from corm_jax.losses.presets import PRESETS, preset
from corm_jax.losses.terms import build, cross_entropy
from corm_jax.sharding import create_mesh
from corm_jax.state import abstract_state, create_state
from corm_jax.steps import make_train_step

CLEAN = {"norm": "l2", "sigma": 0.0, "probability": 0.0}


def test_cross_entropy_of_soft_targets():
    batch = make_batch()
    losses, _ = cross_entropy(linear(), batch, KEY)
    expected = by_hand_cross_entropy(batch["image"], batch["target"])
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def penalty_by_hand(batch, weights, of):
    """Derives the penalty of f(x) = W^T x + b and its gradient to W, in float64.

    With p = softmax(f(x)), the input gradient is g = W r: r = p - t for the loss, 1/C - p for the
    mean log-probability. The penalty is mean(m^2 g^2); u = 2 m^2 g / P is its derivative to g, and
    dr = +-dp with dp = (diag p - p p^T) df, df = dW^T x.
    """
    weights = np.asarray(weights, np.float64)
    values, total = [], np.zeros_like(weights)
    probabilities = softmax(batch["image"], weights)
    for index in range(len(probabilities)):
        x = np.asarray(batch["image"][index], np.float64).ravel()
        mask = np.repeat(np.asarray(batch["non_core"][index], np.float64).ravel(), 3)
        p, t = probabilities[index], np.asarray(batch["target"][index], np.float64)
        sign, r = (1, p - t) if of == "loss" else (-1, 1 / CLASSES - p)
        g = weights @ r
        values.append((mask**2 * g**2).mean())
        u = 2 * mask**2 * g / PIXELS
        jacobian = np.diag(p) - np.outer(p, p)
        total += np.outer(u, r) + sign * np.outer(x, jacobian @ (weights.T @ u))
    return np.array(values), total / len(values)


@pytest.mark.parametrize("of", ["loss", "log_probabilities"])
def test_penalty_and_its_gradient_are_those_derived_by_hand(of):
    batch = make_batch()

    def mean(weights):
        losses, logs = input_gradient(linear(weights), batch, KEY, of=of, **CLEAN)
        return losses.mean(), (losses, logs)

    gradient, (losses, logs) = jax.jit(jax.grad(mean, has_aux=True))(WEIGHTS)
    values, expected = penalty_by_hand(batch, WEIGHTS, of)
    np.testing.assert_allclose(losses, values, rtol=1e-4)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * abs(expected).max())
    norm = np.sqrt(values * PIXELS).mean()
    assert float(logs["input_gradient_norm"]) == pytest.approx(norm, rel=1e-4)


class Linear(nn.Module):
    num_classes: int = CLASSES

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(self.num_classes, name="fc")(images.reshape(len(images), -1)), {}


def test_a_training_step_on_the_penalty_alone_moves_the_weights_as_derived_by_hand():
    config = base_config("erm")
    config.data.image_size = SIZE
    config.train.steps = 2
    config.optimizer.update(
        {"name": "sgd", "learning_rate": 0.1, "warmup_steps": 0, "momentum": 0.0}
    )
    config.optimizer.update({"weight_decay": 0.0, "clip_norm": 0.0})
    with config.unlocked():
        constant = {"weight": 50.0, "initial_weight": 0.0, "transition_steps": 0}
        config.terms = {"gradient": {"term": "input_gradient", **constant, "of": "loss", **CLEAN}}
    mesh = create_mesh(1, 1, jax.devices()[:1])
    abstract = abstract_state(config, Linear(), mesh)
    state = create_state(config, Linear(), abstract)
    state = state.replace(params={"fc": {"kernel": WEIGHTS + 0.0, "bias": BIAS + 0.0}})
    step, _ = make_train_step(config, Linear(), mesh, abstract)

    generator = np.random.default_rng(5)
    core = generator.integers(0, 256, (BATCH, SIZE, SIZE)).astype(np.uint8)
    image = generator.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    label = np.array([0, 1, 2, 0], np.int32)
    loaded = {
        "image": image,
        "label": label,
        "id": np.arange(BATCH, dtype=np.uint32),
        "weight": np.ones(BATCH, np.float32),
        "has_mask": np.ones(BATCH, np.float32),
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (BATCH, 1)),
        "core_mask": core,
    }
    new, metrics = step(state, loaded)
    batch = {"image": image / 255, "non_core": 1 - core / 255, "target": np.eye(CLASSES)[label]}
    values, gradient = penalty_by_hand(batch, WEIGHTS, "loss")
    change = np.asarray(new.params["fc"]["kernel"], np.float64) - np.asarray(WEIGHTS)
    expected = -0.1 * 50 * gradient
    np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
    assert abs(expected).max() > 1e-3
    assert float(metrics["loss"]) == pytest.approx(50 * values.mean(), rel=1e-4)


def test_penalty_takes_the_noise_of_noisy_cross_entropy():
    batch = make_batch()
    noisy = {"sigma": 0.25, "probability": 0.5}
    found, _ = input_gradient(linear(), batch, KEY, of="loss", norm="l2", **noisy)
    view = batch | {"image": noisy_view(batch, KEY, **noisy)}
    expected, _ = input_gradient(linear(), view, KEY, of="loss", **CLEAN)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_penalty_of_a_half_precision_model_is_computed_in_float32():
    batch = make_batch()
    weights = 100 * WEIGHTS  # squares of its gradients leave float16's range of 65,504
    arguments = {"of": "loss", **CLEAN}
    losses, _ = input_gradient(linear(weights, jnp.float16), batch, KEY, **arguments)
    expected, _ = input_gradient(linear(weights), batch, KEY, **arguments)
    assert losses.dtype == jnp.float32
    assert float(expected.max()) * PIXELS > 65_504
    np.testing.assert_allclose(losses, expected, rtol=0.02)


def objective(name, weights, batch):
    """Returns the weighted sum of a preset's terms for each image."""
    terms = build(preset(name)).values()
    return sum(weight * term(linear(weights), batch, KEY)[0] for weight, term in terms)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_an_image_without_mask_contributes_exactly_its_cross_entropy(name):
    batch = make_batch()
    losses = objective(name, WEIGHTS, batch)
    clean, _ = cross_entropy(linear(), batch, KEY)
    if name == "noise":  # uses no masks, and leaves half of the images clean
        assert (losses != clean).any()
        without = {k: jnp.zeros_like(batch[k]) for k in ("non_core", "core_mask", "mask_valid")}
        np.testing.assert_array_equal(objective(name, WEIGHTS, batch | without), losses)
    elif name == "dfr":  # nothing is learned where class and background may be of a kind
        assert losses[0] == 0
        assert (losses[1:] != clean[1:]).all()
    else:
        assert losses[0] == clean[0]
        assert name == "erm" or (losses[1:] != clean[1:]).all()


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_gradients_are_finite_without_and_with_nothing_but_background(name, share):
    shape = (BATCH, SIZE, SIZE, 1)
    batch = make_batch() | {"non_core": jnp.full(shape, share), "mask_valid": jnp.ones(shape)}
    batch["core_mask"] = jnp.full(shape, 1 - share)
    gradient = jax.grad(lambda weights: objective(name, weights, batch).mean())(WEIGHTS)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"background_swap", "corm_plus", "dfr"}))
def test_losses_of_other_images_do_not_depend_on_an_image(name):
    batch = make_batch()
    other = batch | {
        "image": batch["image"].at[2].set(0.3),
        "non_core": batch["non_core"].at[2].set(0.5),
    }
    kept = np.array([0, 1, 3])
    losses, changed = objective(name, WEIGHTS, batch), objective(name, WEIGHTS, other)
    np.testing.assert_allclose(losses[kept], changed[kept], rtol=1e-6)
    assert losses[2] != changed[2]

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corm_jax.masks.annotate.attack import (
    RADIUS_PER_SIDE,
    STEP_PER_SIDE,
    STEPS,
    feature_attack,
    make_attack,
)
from corm_jax.masks.building.encoder import Encoder
from corm_jax.models import create_model

WEIGHT = np.zeros((2, 2, 3), np.float32)
WEIGHT[0, 0, 0], WEIGHT[1, 1, 2] = 3.0, -4.0  # of norm 5


def linear(images: jax.Array) -> jax.Array:
    return (images * WEIGHT).sum(axis=(1, 2, 3))


def attacked(images: np.ndarray, **options: float) -> tuple[np.ndarray, np.ndarray]:
    return jax.device_get(feature_attack(linear, jnp.asarray(images), **options))


def test_step_on_a_linear_feature_is_along_its_weight_with_the_given_norm() -> None:
    images = np.full((2, 2, 2, 3), 0.5, np.float32)
    changed, values = attacked(images, step=0.1, radius=9.0, steps=1)
    expected = images + 0.1 * WEIGHT / 5
    np.testing.assert_allclose(changed, expected, atol=1e-6)
    assert changed[0, 0, 0, 0] == pytest.approx(0.56)
    assert changed[0, 1, 1, 2] == pytest.approx(0.42)
    # w . x = 0.5 * (3 - 4); a step of 0.1 along w adds 0.1 * |w|
    np.testing.assert_allclose(values, [[-0.5, -0.5], [0.0, 0.0]], atol=1e-6)


def test_attack_stays_within_the_ball_and_the_range_of_pixels() -> None:
    images = np.stack([np.full((2, 2, 3), 0.5), np.full((2, 2, 3), 0.95)]).astype(np.float32)
    changed, _ = attacked(images, step=0.1, radius=0.25, steps=10)
    assert np.linalg.norm(changed[0] - images[0]) == pytest.approx(0.25, abs=1e-5)
    np.testing.assert_allclose(changed[0], images[0] + 0.25 * WEIGHT / 5, atol=1e-5)
    assert changed[1].max() == 1.0  # 0.95 + 0.15 is cut off
    assert changed[1, 1, 1, 2] < 0.95 - 0.2 + 1e-5


def test_image_without_gradient_stays_as_it_is() -> None:
    images = np.random.default_rng(0).uniform(size=(2, 2, 2, 3)).astype(np.float32)

    def second_alone(images: jax.Array) -> jax.Array:
        return linear(images) * jnp.array([0.0, 1.0])

    changed, _ = feature_attack(second_alone, jnp.asarray(images), step=0.1, radius=1.0, steps=3)
    np.testing.assert_array_equal(changed[0], images[0])
    assert np.abs(changed[1] - images[1]).max() > 0.05


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    model = create_model("resnet8_nano", num_classes=2, dtype="float32")
    init = jax.jit(partial(model.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.float32))
    return Encoder.create(
        model, variables, image_size=32, center_crop_share=1.0, class_names=("a", "b")
    )


def test_activation_of_a_resnet_rises_with_every_step(encoder: Encoder) -> None:
    images = jax.random.uniform(jax.random.key(1), (5, 32, 32, 3), minval=0.3, maxval=0.7)
    encode = jax.jit(encoder.encode)
    changed, values = jax.jit(
        lambda images: feature_attack(
            lambda changed: encode(encoder.variables, changed)[1][:, 9],
            images,
            step=0.05,
            radius=100.0,
            steps=10,
        )
    )(images)
    assert values.shape == (11, 5)
    assert (np.diff(values, axis=0) > 0).all()
    _, activations, _ = encode(encoder.variables, changed)
    np.testing.assert_allclose(values[-1], activations[:, 9], rtol=1e-5)


def test_compiled_attack_raises_each_feature_by_the_documented_recipe(encoder: Encoder) -> None:
    images = np.random.default_rng(0).integers(60, 200, (5, 32, 32, 3), np.uint8)
    attack, encode = make_attack(encoder), jax.jit(encoder.encode)
    for feature in (1, 40):
        changed, values = attack(images, feature)
        assert changed.dtype == np.uint8
        assert values.shape == (STEPS + 1, 5)
        before, after = (
            encode(encoder.variables, jnp.asarray(batch, jnp.float32) / 255)[1][:, feature]
            for batch in (images, changed)
        )
        np.testing.assert_allclose(values[0], before, rtol=1e-4)
        assert (np.asarray(after) > 2 * np.asarray(before)).all()
        moved = np.linalg.norm((changed / 255 - images / 255).reshape(5, -1), axis=1)
        assert (moved < RADIUS_PER_SIDE * 32 + 0.2).all()  # 0.2: pixels are rounded
        assert (moved > STEP_PER_SIDE * 32).all()

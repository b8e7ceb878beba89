"""Core-focused cross entropy: by hand, and where it is plain cross entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_model import KEY, linear, make_batch

from corm_jax.config import base_config, check_config
from corm_jax.errors import UserError
from corm_jax.losses.cfce import cfce
from corm_jax.losses.terms import cross_entropy
from corm_jax.models import create_model

# Class maps of two places: what they add to the logits of three classes.
CLASS_MAPS = np.array([[[[2.0, 1.0, 0.0], [1.0, 3.0, -1.0]]]])


def batch_of(target, non_core=(0.0, 1.0)):
    """Returns a batch of one image of 1 x 2 pixels, the second outside the core."""
    return {
        "image": jnp.zeros((1, 1, 2, 3)),
        "target": jnp.asarray([target], jnp.float32),
        "non_core": jnp.asarray(non_core, jnp.float32).reshape(1, 1, 2, 1),
        "has_mask": jnp.ones(1),
    }


def loss_of(class_maps, batch, without_mask="clean"):
    maps = jnp.asarray(class_maps, jnp.float32)
    losses, _ = cfce(
        lambda images: (maps.sum(axis=(1, 2)), {"class_maps": maps}),
        batch,
        KEY,
        without_mask=without_mask,
    )
    return losses[0]


def test_loss_is_that_computed_by_hand():
    # D_1 = (1, -2), D_2 = (2, 2), the second place outside the core.
    expected = np.log(1 + np.exp(-1 + 2) + np.exp(-2 + 2))
    assert float(loss_of(CLASS_MAPS, batch_of([1, 0, 0]))) == pytest.approx(expected)
    halves = np.log(1 + np.exp(-1 + 0.5 * 2 + 0.5 * 2) + np.exp(-2 - 0.5 * 2 + 0.5 * 2))
    assert float(loss_of(CLASS_MAPS, batch_of([1, 0, 0], (0, 0.5)))) == pytest.approx(halves)


def test_loss_of_soft_targets_is_that_computed_by_hand():
    # core = (2, 1, 0), outside = (0, 2, 2)
    expected = np.log(np.exp(2) + np.exp(1 + 2) + np.exp(0 + 2)) - (0.8 * 2 + 0.1 * 1)
    assert float(loss_of(CLASS_MAPS, batch_of([0.8, 0.1, 0.1]))) == pytest.approx(expected)


def test_maps_that_all_classes_share_change_nothing():
    shift = np.array([[[[5.0], [-3.0]]]])
    batch = batch_of([0, 1, 0])
    expected = float(loss_of(CLASS_MAPS, batch))
    assert float(loss_of(CLASS_MAPS + shift, batch)) == pytest.approx(expected, rel=1e-6)


def test_whatever_is_outside_the_core_raises_the_loss():
    batch = batch_of([0.9, 0.05, 0.05])
    nothing = CLASS_MAPS.copy()
    nothing[0, 0, 1] = 0
    lowest = float(loss_of(nothing, batch))
    for seed in range(20):
        maps = nothing.copy()
        maps[0, 0, 1] = np.random.default_rng(seed).normal(size=3)
        assert float(loss_of(maps, batch)) > lowest


@pytest.mark.parametrize("name", ["resnet8_nano", "vit_nano_patch8_48"])
def test_a_core_of_the_whole_image_and_what_is_unknown_are_plain_cross_entropy(name):
    model = create_model(name, num_classes=4, dtype="float32", head_bias=False)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(3, 16, 16, 3)), jnp.float32)
    shapes = jax.eval_shape(lambda: model.init(KEY, images, train=False))
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(
            rng.uniform(0.1, 1, size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), jnp.float32
        ),
        shapes,
    )
    outputs = jax.jit(lambda x: model.apply(variables, x, train=False))(images)
    logits, intermediates = outputs
    batch = {
        "image": images,
        "target": jnp.asarray(np.eye(4)[[0, 3, 1]] * 0.9 + 0.1 / 4, jnp.float32),
        # The first image's core is everything, the second's is not; the third has no mask.
        "non_core": jnp.zeros((3, 16, 16, 1)).at[1].set(0.7),
        "has_mask": jnp.asarray([1.0, 1.0, 0.0]),
    }
    losses, _ = cfce(lambda images: outputs, batch, KEY, without_mask="clean")
    expected = optax.softmax_cross_entropy(logits, batch["target"])
    assert losses[0] == expected[0]
    assert losses[2] == expected[2]
    assert losses[1] > expected[1]
    # What the loss rests on: class maps add up to the logits.
    sums = intermediates["class_maps"].sum(axis=(1, 2))
    np.testing.assert_allclose(sums, logits, rtol=1e-4, atol=1e-5)


def test_an_image_without_mask_has_its_cross_entropy_or_nothing():
    batch = make_batch()  # image 0 has no mask
    clean, _ = cross_entropy(linear(), batch, KEY)
    losses, _ = cfce(linear(), batch, KEY, without_mask="clean")
    zero, _ = cfce(linear(), batch, KEY, without_mask="zero")
    assert losses[0] == clean[0]
    np.testing.assert_array_equal(zero, losses.at[0].set(0.0))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_gradients_are_finite_where_classes_do_not_differ(share):
    batch = batch_of([1, 0, 0], (share, share))
    value, gradient = jax.value_and_grad(lambda maps: loss_of(maps, batch))(jnp.zeros((1, 1, 2, 3)))
    assert float(value) == pytest.approx(np.log(3))
    assert np.isfinite(gradient).all()


def test_a_model_without_class_maps_is_named():
    forward = lambda images: (jnp.zeros((1, 3)), {})  # noqa: E731
    with pytest.raises(UserError, match=r"set config\.model\.head_bias=False"):
        cfce(forward, batch_of([1, 0, 0]), KEY, without_mask="clean")


def test_a_head_with_bias_is_refused_before_training():
    config = base_config("cfce")
    check_config(config)
    config.model.head_bias = True
    with pytest.raises(UserError, match=r"terms\.core_focused: cfce .*config\.model\.head_bias=F"):
        check_config(config)

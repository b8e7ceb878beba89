"""Cross entropy before another image's background."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_model import KEY, SIZE, by_hand_cross_entropy, linear, make_batch

from corm_jax.losses.swap import background_swap
from corm_jax.losses.terms import cross_entropy

ALWAYS = {"probability": 1.0, "probability_per": "example", "without_mask": "clean"}


def filled(batch, index):
    """Returns an image whose core is its background's mean colour, float64."""
    x, m = (np.asarray(batch[k][index], np.float64) for k in ("image", "non_core"))
    return m * x + (1 - m) * (m * x).sum(axis=(0, 1)) / m.sum()


def test_backgrounds_go_round_among_images_with_masks():
    batch = make_batch()  # image 0 has no mask
    losses, _ = background_swap(linear(), batch, KEY, **ALWAYS)
    x, m = (np.asarray(batch[k], np.float64) for k in ("image", "non_core"))
    candidates = []
    for partners in ([0, 2, 3, 1], [0, 3, 1, 2]):  # the two cycles of three
        views = x.copy()
        for index in (1, 2, 3):
            background = filled(batch, partners[index])
            views[index] += m[index] * (background - x[index])
        candidates.append(by_hand_cross_entropy(views, batch["target"]))
    assert min(abs(np.asarray(losses) - c).max() for c in candidates) < 1e-4
    assert abs(candidates[0] - candidates[1]).max() > 0.1


@pytest.mark.parametrize(("choice", "first"), [("clean", 1.0), ("zero", 0.0)])
def test_an_image_without_mask_keeps_its_background(choice, first):
    batch = make_batch()
    losses, _ = background_swap(linear(), batch, KEY, **ALWAYS | {"without_mask": choice})
    assert losses[0] == first * cross_entropy(linear(), batch, KEY)[0][0]


def test_padding_lends_no_background():
    batch = make_batch(size=8) | {"weight": jnp.asarray([1.0] * 5 + [0.0] * 3)}
    other = batch | {"image": batch["image"].at[5:].set(0.3)}
    found, _ = background_swap(linear(), batch, KEY, **ALWAYS)
    again, _ = background_swap(linear(), other, KEY, **ALWAYS)
    np.testing.assert_array_equal(found[:5], again[:5])


def test_probability_leaves_images_clean():
    batch = make_batch(size=200)
    batch["non_core"] = jnp.ones((200, SIZE, SIZE, 1))
    clean, _ = cross_entropy(linear(), batch, KEY)
    some, _ = background_swap(linear(), batch, KEY, **ALWAYS | {"probability": 0.25})
    assert abs(np.mean(np.asarray(some != clean)) - 0.25) < 4 * np.sqrt(3 / 16 / 200)
    once = ALWAYS | {"probability": 0.5, "probability_per": "batch"}
    for key in jax.random.split(KEY, 8):
        losses, _ = background_swap(linear(), batch, key, **once)
        assert np.mean(np.asarray(losses != clean)) in (0.0, 1.0)

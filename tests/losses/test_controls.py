"""Controls: which wrong masks training gets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corm_jax.config import base_config
from corm_jax.losses.controls import CONTROLS
from corm_jax.protocols.noise import complement_protocol
from corm_jax.steps import Objective

SIZE, BATCH = 16, 6
KEY = jax.random.key(2)
apply = {name: jax.jit(control) for name, control in CONTROLS.items()}


@pytest.fixture
def batch():
    """A batch of a soft square core each, of its own value; 2 has no mask, 3 is known by half."""
    core = np.zeros((BATCH, SIZE, SIZE, 1), np.float32)
    for index in range(BATCH):
        core[index, 5:11, 4 : 8 + index] = (index + 4) / 10
    valid = np.ones((BATCH, SIZE, SIZE, 1), np.float32)
    core[2], valid[2] = 0, 0
    valid[3, :, 8:] = 0
    return {
        "core_mask": jnp.asarray(core * valid),
        "mask_valid": jnp.asarray(valid),
        "has_mask": jnp.asarray(np.arange(BATCH) != 2, jnp.float32),
        "weight": jnp.ones(BATCH),
    }


def maps(batch):
    """Returns (core mask, validity) float32 [B, H, W]."""
    return np.asarray(batch["core_mask"])[..., 0], np.asarray(batch["mask_valid"])[..., 0]


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_images_without_mask_and_unknown_pixels_have_no_core(batch, name):
    for key in jax.random.split(KEY, 5):
        changed = apply[name](batch, key)
        core, valid = maps(changed)
        assert not core[2].any()
        assert not valid[2].any()
        assert not core[valid == 0].any()
        assert core.min() >= 0
        assert core.max() <= 1
        np.testing.assert_array_equal(changed["has_mask"], batch["has_mask"])


@pytest.mark.parametrize("name", sorted(set(CONTROLS) - {"none"}))
def test_every_control_changes_the_masks_and_none_does_not(batch, name):
    assert (maps(apply[name](batch, KEY))[0] != maps(batch)[0]).any(axis=(1, 2)).sum() == BATCH - 1
    np.testing.assert_array_equal(maps(apply["none"](batch, KEY)), maps(batch))


def test_shuffled_masks_are_each_anothers_once(batch):
    batch["weight"] = batch["weight"].at[5].set(0.0)
    (core, valid), (before, known) = maps(apply["shuffled"](batch, KEY)), maps(batch)
    sources = [next(j for j in range(BATCH) if (core[i] == before[j]).all()) for i in (0, 1, 3, 4)]
    assert sorted(sources) == [0, 1, 3, 4]  # 2 has no mask, 5 is padding
    assert all(source != index for source, index in zip(sources, (0, 1, 3, 4), strict=True))
    for index, source in zip((0, 1, 3, 4), sources, strict=True):
        np.testing.assert_array_equal(valid[index], known[source])


def test_random_masks_keep_their_values_and_can_be_anywhere(batch):
    before, known = maps(batch)
    total = np.zeros((BATCH, SIZE, SIZE))
    for key in jax.random.split(KEY, 300):
        core, valid = maps(apply["random"](batch, key))
        for index in range(BATCH):
            np.testing.assert_array_equal(np.sort(core[index], None), np.sort(before[index], None))
            assert valid[index].sum() == known[index].sum()
        total += core
    shares = total / 300 / (before.max(axis=(1, 2), keepdims=True) + 1e-9)
    for index in (0, 4):
        area = (before[index] > 0).mean()
        assert abs(shares[index] - area).max() < 5 * np.sqrt(area * (1 - area) / 300)


def test_whole_leaves_no_core(batch):
    core, valid = maps(apply["whole"](batch, KEY))
    assert not core.any()
    np.testing.assert_array_equal(valid, maps(batch)[1])


def test_dilated_and_eroded_by_hand(batch):
    # One application of the plus of arm 2 at 16 pixels.
    before = maps(batch)[0]
    dilated, eroded = (maps(apply[name](batch, KEY))[0] for name in ("dilated", "eroded"))
    offsets = [(0, 0)] + [(s * d, 0) for s in (-1, 1) for d in (1, 2)]
    offsets += [(b, a) for a, b in offsets[1:]]
    rolled = np.stack([np.roll(before, offset, (1, 2)) for offset in offsets])
    for index in (0, 1, 4, 5):  # no core near the edge, everything known
        np.testing.assert_allclose(dilated[index], rolled[:, index].max(axis=0), rtol=1e-6)
        np.testing.assert_allclose(eroded[index], rolled[:, index].min(axis=0), atol=1e-6)
    # What is unknown begins at column 8, and does not eat into the core beside it.
    np.testing.assert_allclose(eroded[3, 7:9, 6:8], 0.7, rtol=1e-6)
    assert not eroded[3, :, :6].any()


def test_eroding_a_core_that_fills_the_image_keeps_it(batch):
    batch |= {"core_mask": jnp.ones_like(batch["core_mask"]) * batch["mask_valid"]}
    np.testing.assert_array_equal(maps(apply["eroded"](batch, KEY))[0], maps(batch)[0])


def test_shifted_masks_move_by_an_eighth_diagonally_and_lose_what_leaves(batch):
    batch["core_mask"] = batch["core_mask"].at[0].set(0.0).at[0, :3, :3].set(1.0)
    before, seen = maps(batch)[0], set()
    for key in jax.random.split(KEY, 40):
        core = maps(apply["shifted"](batch, key))[0]
        moves = {(dy, dx): np.roll(before[4], (dy, dx), (0, 1)) for dy in (-2, 2) for dx in (-2, 2)}
        found = [move for move, expected in moves.items() if (core[4] == expected).all()]
        assert len(found) == 1
        seen.add(found[0])
        assert core[0].sum() in (9, 3, 1)  # of 3 x 3 pixels in the corner
        assert not core[0, 8:].any()
        assert not core[0, :, 8:].any()
    assert len(seen) == 4


class Mean(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, images, *, train):
        return images.mean(axis=(1, 2)) * 9.0, {}


def loaded():
    rng = np.random.default_rng(0)
    core = np.zeros((BATCH, SIZE, SIZE), np.uint8)
    core[:, 3:9, 2:8] = 255
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8),
        "label": np.arange(BATCH, dtype=np.int32) % 3,
        "id": np.arange(BATCH, dtype=np.uint32),
        "weight": np.ones(BATCH, np.float32),
        "has_mask": np.ones(BATCH, np.float32),
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (BATCH, 1)),
        "core_mask": core,
    }


def config_of(control):
    config = base_config("corm")
    config.control = control
    config.eval.trials = 1
    return config


def test_training_gets_the_wrong_masks_by_step_and_evaluation_the_true_ones():
    batch = jax.tree.map(jnp.asarray, loaded())
    control, none = (jax.jit(Objective(config_of(c), Mean()).batch) for c in ("random", "none"))
    first, again, second = (control(batch, jnp.int32(step)) for step in (0, 0, 1))
    true = none(batch, jnp.int32(0))
    np.testing.assert_array_equal(first["non_core"], 1 - first["core_mask"])
    np.testing.assert_array_equal(first["non_core"], again["non_core"])
    assert (first["non_core"] != second["non_core"]).any()
    assert (first["non_core"] != true["non_core"]).any()
    counts = [
        jax.jit(complement_protocol(Mean(), config_of(control)))({}, batch)
        for control in ("none", "whole")
    ]
    jax.tree.map(np.testing.assert_array_equal, *counts)

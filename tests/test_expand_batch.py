"""What a loaded batch becomes on the device: images, core masks, validity, targets."""

import jax.numpy as jnp
import numpy as np

from corm_jax.config import base_config
from corm_jax.models import create_model
from corm_jax.steps import Objective, expand_batch

SIZE = 8
WHOLE, WIDER, FLIPPED = (0, 0, 1, 1), (0, 0, 1, 2), (0, 2, 1, 0)


def make_batch(windows, has_mask, **masks):
    size = len(windows)
    images = np.arange(size * SIZE * SIZE * 3) % 256
    return {
        "image": jnp.asarray(images.reshape(size, SIZE, SIZE, 3), jnp.uint8),
        "label": jnp.arange(size, dtype=jnp.int32),
        "id": jnp.arange(size, dtype=jnp.uint32) + 7,
        "weight": jnp.ones(size),
        "has_mask": jnp.asarray(has_mask, jnp.float32),
        "mask_window": jnp.asarray(windows, jnp.float32),
        **{key: jnp.asarray(value, jnp.uint8) for key, value in masks.items()},
    }


def test_images_and_masks_become_floats_between_0_and_1():
    mask = np.full((1, SIZE, SIZE), 51)
    batch = make_batch([WHOLE], [1], core_mask=mask)
    expanded = expand_batch(batch)
    np.testing.assert_allclose(expanded["image"], np.asarray(batch["image"]) / 255, rtol=1e-6)
    np.testing.assert_allclose(expanded["core_mask"], np.full((1, SIZE, SIZE, 1), 0.2), rtol=1e-6)
    np.testing.assert_array_equal(expanded["mask_valid"], np.ones((1, SIZE, SIZE, 1)))
    for key in ("label", "id", "weight", "has_mask"):
        assert expanded[key] is batch[key]


def test_beyond_the_masks_frame_nothing_is_known():
    left = np.broadcast_to(np.arange(SIZE) < 4, (SIZE, SIZE)).astype(np.float32)
    masks = np.full((2, SIZE, SIZE), 255)
    expanded = expand_batch(make_batch([WIDER, FLIPPED], [1, 1], core_mask=masks))
    for key in ("mask_valid", "core_mask"):
        np.testing.assert_array_equal(expanded[key][..., 0], [left, left[:, ::-1]])


def test_grids_are_resampled_into_the_crop_and_end_where_their_frame_does():
    # The frame's left half is core: in the wider crop its left quarter, blurred between cells.
    grid = np.array([[[255, 0]] * 2] * 2)
    expanded = expand_batch(make_batch([WHOLE, WIDER], [1, 1], core_grid=grid))
    # Cell centres are at 1/4 and 3/4 of the frame; pixel centres at (i + 1/2) / 8, and twice that.
    whole = [1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8, 0, 0]
    wider = [1, 3 / 4, 1 / 4, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(expanded["core_mask"][:, 3, :, 0], [whole, wider], atol=1e-6)
    np.testing.assert_array_equal(expanded["mask_valid"][:, 3, :, 0], [[1] * 8, [1] * 4 + [0] * 4])


def test_an_image_without_mask_has_neither_core_nor_known_pixels():
    masks = np.full((1, SIZE, SIZE), 255)
    expanded = expand_batch(make_batch([WHOLE], [0], core_mask=masks))
    assert not expanded["core_mask"].any()
    assert not expanded["mask_valid"].any()


def test_objective_adds_smoothed_targets_and_what_is_known_not_to_be_core():
    config = base_config("erm")
    config.train.label_smoothing = 0.3
    objective = Objective(config, create_model("resnet10_nano", num_classes=3, dtype="float32"))
    masks = np.full((3, SIZE, SIZE), 51)
    batch = objective.batch(make_batch([WHOLE, WIDER, WHOLE], [1, 1, 0], core_mask=masks), step=0)
    np.testing.assert_allclose(batch["target"], np.full((3, 3), 0.1) + 0.7 * np.eye(3), rtol=1e-5)
    rows = [[0.8] * 8, [0.8] * 4 + [0] * 4, [0] * 8]
    np.testing.assert_allclose(batch["non_core"][:, 0, :, 0], rows, rtol=1e-6)

"""Swin transformers against timm's on random weights, their windows, and their image sizes."""

import numpy as np
import pytest
from learning import assert_every_parameter_learns
from torch_models import import_parity, import_timm

from corm_jax.description import Description
from corm_jax.errors import UserError
from corm_jax.export import timm_config
from corm_jax.models import check_image_size
from corm_jax.models.normalizer import IMAGENET
from corm_jax.models.swin import (
    MASKED,
    SwinTransformer,
    join,
    partition,
    relative_positions,
    shifted_mask,
)

WINDOW = 4
OURS = SwinTransformer(
    num_classes=5,
    patch_size=4,
    depths=(2, 2),
    width=8,
    heads=(2, 4),
    statistics=IMAGENET,
    window=WINDOW,
)


# Whole windows; maps of 9 and 5, padded; maps of 6 and 3, the second smaller than a window.
@pytest.mark.parametrize("image_size", [64, 36, 24])
def test_logits_and_input_gradients_are_timms_both_ways(image_size):
    import_timm()
    from timm.models.swin_transformer import SwinTransformer

    theirs = SwinTransformer(
        img_size=image_size,
        patch_size=4,
        num_classes=5,
        depths=(2, 2),
        embed_dim=8,
        num_heads=(2, 4),
        window_size=WINDOW,
    )
    parity = import_parity().compare(OURS, theirs, library="timm", image_size=image_size)
    assert parity.logits < 1e-4
    assert parity.gradient < 1e-3
    assert parity.exact


def test_every_parameter_learns():
    assert_every_parameter_learns(OURS, 36)


def test_image_size_must_be_a_multiple_of_the_patch():
    check_image_size("swin_tiny_patch4_window7_224", 100)
    with pytest.raises(UserError, match="image_size=98 is not a multiple of the patch size 4"):
        check_image_size("swin_tiny_patch4_window7_224", 98)


def test_an_export_says_for_which_size_timm_must_make_the_model():
    def arguments(size):
        name = "swin_tiny_patch4_window7_224"
        return timm_config(Description(name, 2, None, IMAGENET, size, 0.875, "bilinear"))[
            "model_args"
        ]

    assert (arguments(224), arguments(256)) == ({}, {"img_size": 256})


def test_windows_hold_neighbours_and_are_joined_again():
    maps = np.arange(2 * 4 * 6 * 1).reshape(2, 4, 6, 1)
    windows = partition(maps, (2, 3))
    np.testing.assert_array_equal(windows[0, 1, :, 0], [3, 4, 5, 9, 10, 11])
    np.testing.assert_array_equal(windows[0, 2, :, 0], [12, 13, 14, 18, 19, 20])
    np.testing.assert_array_equal(join(windows, (2, 3), (4, 6)), maps)


def test_places_of_the_same_offset_share_a_bias():
    rows, columns = 2, 3
    found = relative_positions(rows, columns)
    places = [(y, x) for y in range(rows) for x in range(columns)]
    offsets = [(y, x) for y in (-1, 0, 1) for x in (-2, -1, 0, 1, 2)]
    for q, (qy, qx) in enumerate(places):
        for k, (ky, kx) in enumerate(places):
            assert offsets[found[q, k]] == (qy - ky, qx - kx)


@pytest.mark.parametrize("shift", [(1, 2), (0, 1), (1, 0)])
def test_only_places_that_the_shift_brought_together_are_masked(shift):
    shape, window = (4, 9), (2, 3)
    places = np.stack(np.mgrid[: shape[0], : shape[1]], axis=-1)
    before = (places + shift) % shape  # where a shifted map's places were
    here, there = (partition(array[None], window)[0] for array in (places, before))
    neighbours = (here[:, :, None] - here[:, None] == there[:, :, None] - there[:, None]).all(-1)
    mask = shifted_mask(shape, window, shift)
    assert 0 < (~neighbours).sum() < neighbours.sum()
    np.testing.assert_array_equal(mask, np.where(neighbours, 0.0, MASKED))

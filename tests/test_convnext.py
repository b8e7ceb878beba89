"""ConvNeXts against timm's on random weights, and their image sizes."""

import jax
import jax.numpy as jnp
import pytest
from learning import assert_every_parameter_learns
from torch_models import import_parity, import_timm

from corm_jax.errors import UserError
from corm_jax.models import check_image_size
from corm_jax.models.convnext import ConvNeXt
from corm_jax.models.normalizer import IMAGENET

SHAPE = {"depths": (1, 2, 1, 1), "num_classes": 5}
WIDTHS = (8, 12, 16, 20)
OURS = ConvNeXt(**SHAPE, widths=WIDTHS, statistics=IMAGENET)


@pytest.mark.parametrize("image_size", [64, 71])
def test_logits_and_input_gradients_are_timms_both_ways(image_size):
    import_timm()
    from timm.models.convnext import ConvNeXt

    theirs = ConvNeXt(**SHAPE, dims=WIDTHS)
    parity = import_parity().compare(OURS, theirs, library="timm", image_size=image_size)
    assert parity.logits < 1e-4
    assert parity.gradient < 1e-3
    assert parity.exact


def test_every_parameter_learns():
    assert_every_parameter_learns(OURS, 64)


def test_smallest_image_leaves_a_place_of_the_last_map():
    def last_map(size):
        images = jnp.zeros((1, size, size, 3))
        _, intermediates = OURS.init_with_output(jax.random.key(0), images, train=False)[0]
        return intermediates["stage4"]

    check_image_size("convnext_tiny", 32)
    assert jax.eval_shape(lambda: last_map(32)).shape == (1, 1, 1, 20)
    assert jax.eval_shape(lambda: last_map(31)).shape == (1, 0, 0, 20)
    with pytest.raises(UserError, match="image_size=31 is too small for convnext_tiny"):
        check_image_size("convnext_tiny", 31)

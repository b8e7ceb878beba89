"""Models by their timm names, and small ones for laptops and tests."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from corm_jax.errors import UserError, lookup
from corm_jax.models.normalizer import IMAGENET, INCEPTION
from corm_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from corm_jax.models.vit import VisionTransformer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

_vit = partial(VisionTransformer, statistics=INCEPTION)
_resnet = partial(ResNet, statistics=IMAGENET)

MODELS: dict[str, partial[nn.Module]] = {
    "resnet18": partial(_resnet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    "resnet50": partial(_resnet, stage_sizes=(3, 4, 6, 3), block=Bottleneck),
    "vit_tiny_patch16_224": partial(_vit, patch_size=16, width=192, depth=12, heads=3),
    "vit_small_patch16_224": partial(_vit, patch_size=16, width=384, depth=12, heads=6),
    "vit_base_patch16_224": partial(_vit, patch_size=16, width=768, depth=12, heads=12),
    # Ours, not timm's: small enough to train on a laptop's processor in minutes.
    "resnet10_nano": partial(
        _resnet, stage_sizes=(1, 1, 1, 1), block=BasicBlock, width=16, small_images=True
    ),
    # A stage less: its last map has twice the resolution, which the masks' demo wants.
    "resnet8_nano": partial(
        _resnet, stage_sizes=(1, 1, 1), block=BasicBlock, width=16, small_images=True
    ),
    "vit_nano_patch8_48": partial(
        _vit, patch_size=8, width=96, depth=4, heads=3, mlp_ratio=2, global_pool="avg"
    ),
}


def create_model(name: str, *, num_classes: int, dtype: str) -> nn.Module:
    """Creates a model by name.

    Args:
      name: a key of `MODELS`. The number after the patch size is the resolution of timm's weights;
        any multiple of the patch size works when training from scratch.
      num_classes: number of logits.
      dtype: computation dtype, "float32" or "bfloat16"; parameters are float32 in both.

    Returns:
      A module whose `apply(variables, images, train=...)` maps images [B, H, W, 3] in [0, 1] to
      (logits float32 [B, num_classes], dict of intermediates).

    Raises:
      UserError: if the name or the dtype is unknown; names the nearest one.
    """
    constructor = lookup(MODELS, name, "model")
    return constructor(num_classes=num_classes, dtype=lookup(DTYPES, dtype, "dtype"))


def check_image_size(name: str, image_size: int) -> None:
    """Raises UserError if the named model cannot take square images of this size."""
    patch_size = lookup(MODELS, name, "model").keywords.get("patch_size", 1)
    if image_size % patch_size:
        raise UserError(
            f"config.data.image_size={image_size} is not a multiple of the patch size {patch_size} "
            f"of {name}"
        )

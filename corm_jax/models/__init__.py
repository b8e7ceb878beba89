"""Models by their timm names, CLIP's by open_clip's, and small ones for laptops and tests."""

import re
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from corm_jax.errors import UserError, lookup
from corm_jax.models import clip, convnext, densenet, resnet, swin, vit

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
POOLS = {name: name for name in ("token", "avg")}

# Each family's file holds its variants.
MODELS: dict[str, partial[nn.Module]] = {
    **resnet.VARIANTS,
    **vit.VARIANTS,
    **densenet.VARIANTS,
    **convnext.VARIANTS,
    **swin.VARIANTS,
    **clip.VARIANTS,
}
# Ours, not timm's: small enough to train on a laptop's processor in minutes.
OWN = ("resnet8_nano", "resnet10_nano", "vit_nano_patch8_48")


def create_model(
    name: str, *, num_classes: int, dtype: str, head_bias: bool = True, global_pool: str = ""
) -> nn.Module:
    """Creates a model by name.

    Args:
      name: a key of `MODELS`. The number after the patch size is the resolution of timm's weights;
        any multiple of the patch size works when training from scratch.
      num_classes: number of logits.
      dtype: computation dtype, "float32" or "bfloat16"; parameters are float32 in both.
      head_bias: whether the head has a bias, as timm's have.
      global_pool: of vision transformers, what the head sees: "token" or "avg" (then there is no
        class token); "" for what the name stands for.

    Returns:
      A module whose `apply(variables, images, train=...)` maps images [B, H, W, 3] in [0, 1] to
      (logits float32 [B, num_classes], dict of intermediates).

    Raises:
      UserError: if the name or the dtype is unknown (names the nearest one), or the model has no
        such choice of pooling.
    """
    constructor = lookup(MODELS, name, "model")
    model = constructor(
        num_classes=num_classes, dtype=lookup(DTYPES, dtype, "dtype"), head_bias=head_bias
    )
    if not global_pool:
        return model
    lookup(POOLS, global_pool, "global_pool")
    if not isinstance(model, vit.VisionTransformer) or model.distilled:
        raise UserError(f"{name} has no choice of global_pool; leave it empty")
    return model.clone(global_pool=global_pool)


def default_image_size(name: str) -> int:
    """Returns the height and width in pixels of the images that a model is made for.

    It is what the name ends in, else 224, as in timm.

    Raises:
      UserError: if the name is unknown; names the nearest one.
    """
    lookup(MODELS, name, "model")
    size = re.search(r"_(\d{2,})$", name)
    return int(size[1]) if size else 224


def check_image_size(name: str, image_size: int) -> None:
    """Raises UserError if the named model cannot take square images of this size."""
    model = create_model(name, num_classes=1, dtype="float32")
    patch_size = getattr(model, "patch_size", 1)
    if image_size % patch_size:
        raise UserError(
            f"config.data.image_size={image_size} is not a multiple of the patch size {patch_size} "
            f"of {name}"
        )
    smallest = getattr(model, "min_image_size", 1)
    if image_size < smallest:
        raise UserError(
            f"config.data.image_size={image_size} is too small for {name}, which takes images of "
            f"{smallest} pixels or more"
        )

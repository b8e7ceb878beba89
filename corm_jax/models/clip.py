"""CLIP (Radford et al. 2021, arXiv:2103.00020) by open_clip's names.

`CLIP` embeds images and texts; `CLIPClassifier` is its image tower with a linear head, of the same
interface as all models. `corm_jax.models.zero_shot` makes the second of the first.

Names decide the activation of the transformers' MLPs, as in open_clip: OpenAI's weights were
trained with the quick GELU (`ViT-B-32-quickgelu`), open_clip's own mostly with the exact one
(`ViT-B-32`). The residual image towers have ReLUs, so that `RN50` and `RN50-quickgelu` differ in
the text tower only.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from corm_jax.models import normalizer
from corm_jax.models.clip_image import ResNetTower, VisionTower
from corm_jax.models.clip_text import TextTower
from corm_jax.models.gelu import gelu
from corm_jax.models.head import linear_head
from corm_jax.models.normalizer import Statistics, normalize

# What logits are multiplied by starts at 1 / 0.07, as in the paper.
INITIAL_LOGIT_SCALE = 2.6592600369327779


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x * sigmoid(1.702 x), an approximation of GELU (arXiv:1606.08415, section 2)."""
    return x * nn.sigmoid(1.702 * x)


def unit_length(x: jax.Array) -> jax.Array:
    """Returns float32 vectors [..., D] over their lengths."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


class CLIP(nn.Module):
    """Both towers, and the scale of the similarities.

    Attributes:
      image_tower: dtype, name -> module that embeds normalised images.
      text_tower: dtype, name -> module that embeds tokens.
      statistics: mean and standard deviation of the input normaliser.
      dtype: computation dtype; parameters are float32.
    """

    image_tower: partial[ResNetTower | VisionTower]
    text_tower: partial[TextTower]
    statistics: Statistics = normalizer.CLIP
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Names the towers `image` and `text`, for a method each."""
        self.image = self.image_tower(dtype=self.dtype)
        self.text = self.text_tower(dtype=self.dtype)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(INITIAL_LOGIT_SCALE), ()
        )

    def encode_image(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns features [B, D] of unit length, float32, of images [B, H, W, 3] in [0, 1]."""
        x = normalize(images, self.statistics).astype(self.dtype)
        return unit_length(self.image(x, train=train)[0])

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        """Returns features [T, D] of unit length, float32, of int tokens [T, context_length]."""
        return unit_length(self.text(tokens))

    def __call__(
        self, images: jax.Array, tokens: jax.Array | None = None, *, train: bool
    ) -> jax.Array:
        """Returns similarities of images and texts times exp(logit_scale), float32 [B, T].

        Args:
          images: float [B, H, W, 3] in [0, 1].
          tokens: int [T, context_length] in [0, vocabulary), see `corm_jax.models.zero_shot`; one
            empty text if None.
          train: normalise by the batch's statistics, in residual towers, and update the running
            averages, which then must be mutable (collection `batch_stats`).
        """
        if tokens is None:
            tokens = jnp.zeros((1, self.text.context_length), jnp.int32)
        similarities = self.encode_image(images, train=train) @ self.encode_text(tokens).T
        return jnp.exp(self.logit_scale) * similarities


class CLIPClassifier(nn.Module):
    """A classifier on images in [0, 1]: CLIP's image features of unit length, and a linear head.

    Attributes:
      num_classes: number of logits.
      image_tower: dtype, name -> module that embeds normalised images.
      statistics: mean and standard deviation of the input normaliser.
      head_bias: whether the head has a bias.
      dtype: computation dtype; parameters, running averages and logits are float32.
    """

    num_classes: int
    image_tower: partial[ResNetTower | VisionTower]
    statistics: Statistics = normalizer.CLIP
    head_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @property
    def patch_size(self) -> int:
        """Height and width in pixels that an image's must be multiples of."""
        return self.image_tower.keywords.get("patch_size", 1)

    @property
    def min_image_size(self) -> int:
        """Height and width in pixels of the smallest images."""
        return getattr(self.image_tower.func, "min_image_size", self.patch_size)

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, maps_offset: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          images: float [B, H, W, 3] in [0, 1].
          train: as of `CLIP`.
          maps_offset: float [B, h, w, K], added to `maps`; whoever differentiates to them takes the
            derivative to this.

        Returns:
          (logits float32 [B, num_classes], intermediates): those of the tower, and `pre_logits`
          [B, D], the features of unit length.
        """
        x = normalize(images, self.statistics).astype(self.dtype)
        tower = self.image_tower(dtype=self.dtype, name="image")
        features, intermediates = tower(x, train=train, maps_offset=maps_offset)
        features = unit_length(features)
        head = linear_head(
            self.num_classes, bias=self.head_bias, kernel_init=nn.initializers.zeros, name="head"
        )
        return head(features), intermediates | {"pre_logits": features.astype(self.dtype)}


def _block_names(ours: str, theirs: str) -> dict[str, str]:
    block, resblock = rf"{ours}/block0?(\d+)", rf"{theirs}transformer.resblocks.\1"
    return {
        rf"{block}/norm(\d)": rf"{resblock}.ln_\2",
        rf"{block}/attn/qkv/kernel": rf"{resblock}.attn.in_proj_weight",
        rf"{block}/attn/qkv/bias": rf"{resblock}.attn.in_proj_bias",
        rf"{block}/attn/proj": rf"{resblock}.attn.out_proj",
        rf"{block}/fc1": rf"{resblock}.mlp.c_fc",
        rf"{block}/fc2": rf"{resblock}.mlp.c_proj",
    }


# See `corm_jax.torch_weights`. The head's names are ours: open_clip has no classifiers.
TORCH_NAMES = {
    "open_clip": {
        r"logit_scale|head": r"\g<0>",
        r"text/(token_embedding|positional_embedding|ln_final|text_projection)": r"\1",
        **_block_names("text", ""),
        r"image/(class_embedding|positional_embedding|proj|ln_pre|ln_post)": r"visual.\1",
        r"image/(conv\d|bn\d)": r"visual.\1",
        **_block_names("image", "visual."),
        r"image/layer(\d)_block(\d+)/((?:conv|bn)\d)": r"visual.layer\1.\2.\3",
        r"image/layer(\d)_block(\d+)/downsample_conv": r"visual.layer\1.\2.downsample.0",
        r"image/layer(\d)_block(\d+)/downsample_bn": r"visual.layer\1.\2.downsample.1",
        r"image/attnpool/(positional_embedding|[qkvc]_proj)": r"visual.attnpool.\1",
    }
}

_resnet = partial(ResNetTower, width=64, heads=32)
_vit = partial(VisionTower, depth=12)
_base = partial(_vit, features=512, width=768, heads=12)
_large = partial(_vit, features=768, width=1024, depth=24, heads=16)
_text = partial(TextTower, width=512, depth=12, heads=8)
_large_text = partial(TextTower, width=768, depth=12, heads=12)
_TOWERS = {
    "RN50": (partial(_resnet, features=1024, stage_sizes=(3, 4, 6, 3)), _text),
    "RN101": (partial(_resnet, features=512, stage_sizes=(3, 4, 23, 3)), _text),
    "ViT-B-32": (partial(_base, patch_size=32), _text),
    "ViT-B-16": (partial(_base, patch_size=16), _text),
    "ViT-L-14": (partial(_large, patch_size=14), _large_text),
}


def _clip(image: partial, text: partial, activation: Callable) -> partial[CLIP]:
    if image.func is VisionTower:
        image = partial(image, activation=activation)
    text = partial(text, features=image.keywords["features"], activation=activation)
    return partial(CLIP, image_tower=image, text_tower=text)


CLIPS: dict[str, partial[CLIP]] = {
    **{name: _clip(*towers, gelu) for name, towers in _TOWERS.items()},
    **{f"{name}-quickgelu": _clip(*towers, quick_gelu) for name, towers in _TOWERS.items()},
}
VARIANTS: dict[str, partial[CLIPClassifier]] = {
    name: partial(
        CLIPClassifier, image_tower=clip.keywords["image_tower"], statistics=normalizer.CLIP
    )
    for name, clip in CLIPS.items()
}

"""ConvNeXts (Liu et al. 2022, arXiv:2201.03545), laid out as timm's."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from corm_jax.models.gelu import gelu
from corm_jax.models.head import linear_head
from corm_jax.models.normalizer import IMAGENET, Statistics, normalize
from corm_jax.models.remat import block_output
from corm_jax.models.vit import PatchEmbed

LAYER_NORM_EPSILON = 1e-6
MLP_RATIO = 4
# Where the scale of a block's branch starts: near the identity, as in the paper.
INITIAL_GAMMA = 1e-6

# See `corm_jax.torch_weights`. torchvision's have scales of another shape.
TORCH_NAMES = {
    "timm": {
        r"stem_conv": "stem.0",
        r"stem_norm": "stem.1",
        r"stages(\d)_norm": r"stages.\1.downsample.0",
        r"stages(\d)_conv": r"stages.\1.downsample.1",
        r"stages(\d)_block(\d+)/(gamma|conv_dw|norm)": r"stages.\1.blocks.\2.\3",
        r"stages(\d)_block(\d+)/(fc\d)": r"stages.\1.blocks.\2.mlp.\3",
        r"head_norm": "head.norm",
        r"head": "head.fc",
    }
}

kernel_init = nn.initializers.normal(0.02)


class Block(nn.Module):
    """A depthwise 7x7 convolution, and an MLP over channels, beside a shortcut."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C]."""
        features = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=kernel_init, dtype=self.dtype)
        y = nn.Conv(
            features,
            (7, 7),
            padding=3,
            feature_group_count=features,
            kernel_init=kernel_init,
            dtype=self.dtype,
            name="conv_dw",
        )(x)
        y = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")(y)
        y = gelu(dense(MLP_RATIO * features, name="fc1")(y))
        y = dense(features, name="fc2")(y)
        gamma = self.param("gamma", nn.initializers.constant(INITIAL_GAMMA), (features,))
        return x + gamma.astype(self.dtype) * y


class ConvNeXt(nn.Module):
    """A ConvNeXt classifier on images in [0, 1].

    Attributes:
      num_classes: number of logits.
      depths: blocks in each stage; the first is at a quarter of the resolution, others halve it.
      widths: channels of each stage.
      statistics: mean and standard deviation of the input normaliser.
      head_bias: whether the head has a bias.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int
    depths: Sequence[int]
    widths: Sequence[int]
    statistics: Statistics
    head_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    # In pixels: resolutions are rounded down, and smaller images leave nothing of the last map.
    min_image_size = 32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, maps_offset: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          images: float [B, H, W, 3] in [0, 1].
          train: whether this is a training pass; ConvNeXts do the same in both.
          maps_offset: float [B, h, w, K], added to `maps`; whoever differentiates to them takes the
            derivative to this.

        Returns:
          (logits float32 [B, num_classes], intermediates): `stage1`.. [B, h, w, C] after each
          stage, `maps` (the last stage's, for class activation maps), `pre_logits` [B, C] after
          pooling and norm.
        """
        del train
        norm = partial(nn.LayerNorm, epsilon=LAYER_NORM_EPSILON, dtype=self.dtype)
        x = normalize(images, self.statistics).astype(self.dtype)
        x = self._patches(x, self.widths[0], 4, "stem_conv")
        x = norm(name="stem_norm")(x)
        intermediates = {}
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage > 0:
                x = norm(name=f"stages{stage}_norm")(x)
                x = self._patches(x, width, 2, f"stages{stage}_conv")
            for index in range(depth):
                x = block_output(Block(self.dtype, name=f"stages{stage}_block{index}")(x))
            intermediates[f"stage{stage + 1}"] = x
        maps = x if maps_offset is None else x + maps_offset
        x = norm(name="head_norm")(maps.mean(axis=(1, 2)))
        intermediates |= {"maps": maps, "pre_logits": x}
        head = linear_head(
            self.num_classes, bias=self.head_bias, kernel_init=kernel_init, name="head"
        )
        return head(x.astype(jnp.float32)), intermediates

    def _patches(self, x: jax.Array, features: int, size: int, name: str) -> jax.Array:
        """Projects patches [size, size]; rows and columns that fill none are left out."""
        height, width = (length - length % size for length in x.shape[1:3])
        project = PatchEmbed(features, size, self.dtype, kernel_init=kernel_init, name=name)
        return project(x[:, :height, :width])


_convnext = partial(ConvNeXt, statistics=IMAGENET)

VARIANTS: dict[str, partial[ConvNeXt]] = {
    "convnext_tiny": partial(_convnext, depths=(3, 3, 9, 3), widths=(96, 192, 384, 768)),
    "convnext_small": partial(_convnext, depths=(3, 3, 27, 3), widths=(96, 192, 384, 768)),
    "convnext_base": partial(_convnext, depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024)),
}

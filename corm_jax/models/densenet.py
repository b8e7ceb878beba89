"""DenseNets (Huang et al. 2017, arXiv:1608.06993), laid out as timm's and torchvision's."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from corm_jax.models.head import classify_maps, linear_head
from corm_jax.models.normalizer import IMAGENET, Statistics, normalize
from corm_jax.models.remat import block_output
from corm_jax.models.resnet import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM

BOTTLENECK = 4  # a layer's 1x1 convolution has so many times the features of its 3x3 one

# See `corm_jax.torch_weights`.
TIMM_NAMES = {
    r"conv0|norm0|norm5": r"features.\g<0>",
    r"block(\d)_layer(\d+)/((?:conv|norm)\d)": r"features.denseblock\1.denselayer\2.\3",
    r"transition(\d)_(conv|norm)": r"features.transition\1.\2",
    r"classifier": r"\g<0>",
}
TORCH_NAMES = {"timm": TIMM_NAMES, "torchvision": TIMM_NAMES}


def _conv(features: int, kernel: int, stride: int, dtype: jnp.dtype, name: str) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
        name=name,
    )


def _norm_relu(x: jax.Array, train: bool, dtype: jnp.dtype, name: str) -> jax.Array:
    norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        dtype=dtype,
        name=name,
    )
    return nn.relu(norm(x))


class DenseLayer(nn.Module):
    """1x1 and 3x3 convolutions, each after norm and ReLU."""

    growth: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C + growth]: the input and the new features."""
        y = _norm_relu(x, train, self.dtype, "norm1")
        y = _conv(BOTTLENECK * self.growth, 1, 1, self.dtype, "conv1")(y)
        y = _norm_relu(y, train, self.dtype, "norm2")
        # The new features alone: joined, each would be kept by every layer after it.
        y = block_output(_conv(self.growth, 3, 1, self.dtype, "conv2")(y))
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """A densely connected classifier on images in [0, 1].

    Attributes:
      num_classes: number of logits.
      block_sizes: layers of each block; a transition between two halves channels and resolution.
      statistics: mean and standard deviation of the input normaliser.
      growth: features that a layer adds; the stem has twice as many.
      head_bias: whether the head has a bias.
      dtype: computation dtype; parameters, running averages and logits are float32.
    """

    num_classes: int
    block_sizes: Sequence[int]
    statistics: Statistics
    growth: int = 32
    head_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    # In pixels: the transitions round down, and smaller images leave nothing of the last map.
    min_image_size = 29

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, maps_offset: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          images: float [B, H, W, 3] in [0, 1].
          train: normalise by the batch's statistics and update the running averages, which then
            must be mutable (collection `batch_stats`).
          maps_offset: float [B, h, w, K], added to `maps`; whoever differentiates to them takes the
            derivative to this.

        Returns:
          (logits float32 [B, num_classes], intermediates): `stage1`.. [B, h, w, C] after each
          block, the last after its norm and ReLU; `maps` (the last block's, for class activation
          maps), `pre_logits` [B, C], and `class_maps` if the head has no bias (see
          `corm_jax.models.head`).
        """
        x = normalize(images, self.statistics).astype(self.dtype)
        x = _conv(2 * self.growth, 7, 2, self.dtype, "conv0")(x)
        x = _norm_relu(x, train, self.dtype, "norm0")
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        intermediates = {}
        for block, layers in enumerate(self.block_sizes, 1):
            for layer in range(1, layers + 1):
                x = DenseLayer(self.growth, self.dtype, name=f"block{block}_layer{layer}")(
                    x, train=train
                )
            if block == len(self.block_sizes):
                x = _norm_relu(x, train, self.dtype, "norm5")
            intermediates[f"stage{block}"] = x
            if block < len(self.block_sizes):
                x = _norm_relu(x, train, self.dtype, f"transition{block}_norm")
                x = _conv(x.shape[-1] // 2, 1, 1, self.dtype, f"transition{block}_conv")(x)
                # Not nn.avg_pool, which mixes dtypes.
                x = nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4
        maps = x if maps_offset is None else x + maps_offset
        head = linear_head(self.num_classes, bias=self.head_bias, name="classifier")
        logits, pooled = classify_maps(head, maps)
        return logits, {**intermediates, **pooled}


VARIANTS: dict[str, partial[DenseNet]] = {
    "densenet121": partial(DenseNet, block_sizes=(6, 12, 24, 16), statistics=IMAGENET),
}

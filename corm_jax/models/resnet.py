"""Residual networks (He et al. 2016, arXiv:1512.03385), laid out as timm's and torchvision's.

Also wide ones (Zagoruyko and Komodakis 2016, arXiv:1605.07146) and ResNeXt (Xie et al. 2017,
arXiv:1611.05431). Bottlenecks stride in their 3x3 convolution ("v1.5"). Padding is symmetric, as in
PyTorch: "SAME" pads stride-2 convolutions on one side only.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from corm_jax.models.head import classify_maps, linear_head
from corm_jax.models.normalizer import IMAGENET, Statistics, normalize
from corm_jax.models.remat import block_output

BATCH_NORM_EPSILON = 1e-5
# Share of the old running average that is kept (PyTorch's momentum of 0.1). The running variance
# is of the batch's biased variance; PyTorch's is of the unbiased one, larger by n / (n - 1) for n
# values a channel, which only a tiny last stage and batch make visible.
BATCH_NORM_MOMENTUM = 0.9

# See `corm_jax.torch_weights`.
TIMM_NAMES = {
    r"conv1|bn1|fc": r"\g<0>",
    r"layer(\d+)_block(\d+)/((?:conv|bn)\d)": r"layer\1.\2.\3",
    r"layer(\d+)_block(\d+)/downsample_conv": r"layer\1.\2.downsample.0",
    r"layer(\d+)_block(\d+)/downsample_bn": r"layer\1.\2.downsample.1",
}
TORCH_NAMES = {"timm": TIMM_NAMES, "torchvision": TIMM_NAMES}

fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    features: int, kernel: int, stride: int, dtype: jnp.dtype, name: str, groups: int = 1
) -> nn.Conv:
    """Returns a convolution without bias; `kernel` is its height and width, padding symmetric."""
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=fan_out,
        dtype=dtype,
        name=name,
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    features: int
    stride: int
    dtype: jnp.dtype
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features]."""
        norm = batch_norm(train, self.dtype)
        y = conv(self.features, 3, self.stride, self.dtype, "conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.features, 3, 1, self.dtype, "conv2")(y)
        y = norm(name="bn2", scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(x, y.shape[-1], self.stride, norm, self.dtype))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Attributes:
      features: a quarter of the block's output channels.
      stride: of the 3x3 convolution.
      dtype: computation dtype.
      groups: of the 3x3 convolution.
      group_width: channels of each of its groups where `features` is 64; in proportion elsewhere.
    """

    features: int
    stride: int
    dtype: jnp.dtype
    groups: int = 1
    group_width: int = 64
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 * features]."""
        norm = batch_norm(train, self.dtype)
        width = self.features * self.group_width // 64 * self.groups
        y = conv(width, 1, 1, self.dtype, "conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(width, 3, self.stride, self.dtype, "conv2", self.groups)(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv(self.expansion * self.features, 1, 1, self.dtype, "conv3")(y)
        y = norm(name="bn3", scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(x, y.shape[-1], self.stride, norm, self.dtype))


def batch_norm(train: bool, dtype: jnp.dtype) -> partial:
    """Returns batch normalisation as PyTorch's by default."""
    return partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        dtype=dtype,
    )


def _shortcut(
    x: jax.Array, features: int, stride: int, norm: partial, dtype: jnp.dtype
) -> jax.Array:
    if x.shape[-1] == features and stride == 1:
        return x
    return norm(name="downsample_bn")(conv(features, 1, stride, dtype, "downsample_conv")(x))


class ResNet(nn.Module):
    """A residual network classifier on images in [0, 1].

    Attributes:
      num_classes: number of logits.
      stage_sizes: blocks in each stage; the first stage keeps the resolution, others halve it.
      block: `BasicBlock`, `Bottleneck`, or a partial of the latter.
      statistics: mean and standard deviation of the input normaliser.
      width: features of the first stage; each later stage doubles them.
      small_images: a stem of one 3x3 convolution of stride 2 instead of a 7x7 one, and no pooling.
      head_bias: whether the head has a bias.
      dtype: computation dtype; parameters, running averages and logits are float32.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    block: Callable[..., BasicBlock | Bottleneck]
    statistics: Statistics
    width: int = 64
    small_images: bool = False
    head_bias: bool = True
    dtype: jnp.dtype = jnp.float32

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
          stage, `maps` (the last stage's, for class activation maps), `pre_logits` [B, C], and
          `class_maps` if the head has no bias (see `corm_jax.models.head`).
        """
        x = normalize(images, self.statistics).astype(self.dtype)
        x = conv(self.width, 3 if self.small_images else 7, 2, self.dtype, "conv1")(x)
        x = nn.relu(batch_norm(train, self.dtype)(name="bn1")(x))
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        intermediates = {}
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                x = self.block(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_block{index}",
                )(x, train=train)
                x = block_output(x)
            intermediates[f"stage{stage + 1}"] = x
        maps = x if maps_offset is None else x + maps_offset
        head = linear_head(self.num_classes, bias=self.head_bias, name="fc")
        logits, pooled = classify_maps(head, maps)
        return logits, {**intermediates, **pooled}


_resnet = partial(ResNet, statistics=IMAGENET)
_bottlenecks = partial(_resnet, block=Bottleneck)

VARIANTS: dict[str, partial[ResNet]] = {
    "resnet18": partial(_resnet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": partial(_resnet, stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": partial(_bottlenecks, stage_sizes=(3, 4, 6, 3)),
    "resnet101": partial(_bottlenecks, stage_sizes=(3, 4, 23, 3)),
    "resnet152": partial(_bottlenecks, stage_sizes=(3, 8, 36, 3)),
    "wide_resnet50_2": partial(
        _resnet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, group_width=128)
    ),
    "wide_resnet101_2": partial(
        _resnet, stage_sizes=(3, 4, 23, 3), block=partial(Bottleneck, group_width=128)
    ),
    "resnext50_32x4d": partial(
        _resnet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, groups=32, group_width=4)
    ),
    "resnext101_32x8d": partial(
        _resnet, stage_sizes=(3, 4, 23, 3), block=partial(Bottleneck, groups=32, group_width=8)
    ),
    # Ours, not timm's: small enough to train on a laptop's processor in minutes.
    "resnet10_nano": partial(
        _resnet, stage_sizes=(1, 1, 1, 1), block=BasicBlock, width=16, small_images=True
    ),
    # A stage less: its last map has twice the resolution, which the masks' demo wants.
    "resnet8_nano": partial(
        _resnet, stage_sizes=(1, 1, 1), block=BasicBlock, width=16, small_images=True
    ),
}

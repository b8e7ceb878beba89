"""CLIP's image towers (Radford et al. 2021, arXiv:2103.00020), laid out as open_clip's."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from corm_jax.models.remat import block_output
from corm_jax.models.resnet import batch_norm, conv
from corm_jax.models.vit import Block, PatchEmbed

LAYER_NORM_EPSILON = 1e-5
MLP_RATIO = 4


class VisionTower(nn.Module):
    """A vision transformer with a norm before its blocks, and a projection of the class token.

    Attributes:
      features: of an image.
      patch_size: height and width of a patch in pixels; the image's must be multiples of it.
      width: token dimension.
      depth: number of blocks.
      heads: attention heads a block; divides `width`.
      activation: of the blocks' MLPs.
      dtype: computation dtype; parameters are float32.
    """

    features: int
    patch_size: int
    width: int
    depth: int
    heads: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, maps_offset: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Embeds normalised images [B, H, W, 3].

        Returns:
          (features [B, features], intermediates): `block00`.. [B, N, D] after each block, `tokens`
          [B, N, D] after the last norm, and `maps` [B, h, w, D], the patch tokens for class
          activation maps, as of `corm_jax.models.vit` with a class token; `maps_offset` is added
          to these.
        """
        del train
        norm = partial(nn.LayerNorm, epsilon=LAYER_NORM_EPSILON, dtype=self.dtype)
        init = nn.initializers.normal(self.width**-0.5)
        x = PatchEmbed(self.width, self.patch_size, self.dtype, use_bias=False, name="conv1")(x)
        grid = x.shape
        x = x.reshape(grid[0], -1, self.width)
        token = self.param("class_embedding", init, (self.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positional_embedding", init, x.shape[1:]).astype(self.dtype)
        x = norm(name="ln_pre")(x)
        offset = None
        if maps_offset is not None:
            offset = jnp.pad(maps_offset.reshape(grid[0], -1, self.width), ((0, 0), (1, 0), (0, 0)))
        intermediates = {}
        normed = x
        for index in range(self.depth):
            name = f"block{index:02d}"
            block = Block(
                self.heads, MLP_RATIO, self.dtype, LAYER_NORM_EPSILON, self.activation, name=name
            )
            x, normed = block(x, offset=offset if index == self.depth - 1 else None)
            x = block_output(x)
            intermediates[name] = x
        intermediates["maps"] = normed[:, 1:].reshape(grid)
        x = norm(name="ln_post")(x)
        intermediates["tokens"] = x
        projection = self.param("proj", init, (self.width, self.features)).astype(self.dtype)
        return x[:, 0] @ projection, intermediates


def _average(x: jax.Array, size: int) -> jax.Array:
    """Averages each [size, size] places; rows and columns that fill none are left out."""
    if size == 1:
        return x
    # Not nn.avg_pool, which mixes dtypes.
    return nn.pool(x, 0.0, jax.lax.add, (size, size), (size, size), "VALID") / size**2


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; averages, not strides, lower resolution."""

    features: int
    stride: int
    dtype: jnp.dtype
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 * features]."""
        norm = batch_norm(train, self.dtype)
        features = self.expansion * self.features
        y = nn.relu(norm(name="bn1")(conv(self.features, 1, 1, self.dtype, "conv1")(x)))
        y = nn.relu(norm(name="bn2")(conv(self.features, 3, 1, self.dtype, "conv2")(y)))
        y = conv(features, 1, 1, self.dtype, "conv3")(_average(y, self.stride))
        y = norm(name="bn3", scale_init=nn.initializers.zeros)(y)
        if self.stride > 1 or x.shape[-1] != features:
            x = conv(features, 1, 1, self.dtype, "downsample_conv")(_average(x, self.stride))
            x = norm(name="downsample_bn")(x)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """Multi-head attention of the mean over a map to the map and itself."""

    features: int
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, features]."""
        batch, width = x.shape[0], x.shape[-1]
        init = nn.initializers.normal(width**-0.5)
        dense = partial(nn.Dense, kernel_init=init, dtype=self.dtype)
        x = x.reshape(batch, -1, width)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + self.param("positional_embedding", init, x.shape[1:]).astype(self.dtype)
        q = dense(width, name="q_proj")(x[:, 0]).reshape(batch, self.heads, -1)
        k = dense(width, name="k_proj")(x).reshape(batch, -1, self.heads, width // self.heads)
        v = dense(width, name="v_proj")(x).reshape(k.shape)
        # Softmax in float32, as `corm_jax.models.vit`.
        scores = jnp.einsum("bhd,bkhd->bhk", q, k) * (width // self.heads) ** -0.5
        weights = nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        pooled = jnp.einsum("bhk,bkhd->bhd", weights, v).reshape(batch, width)
        return dense(self.features, name="c_proj")(pooled)


class ResNetTower(nn.Module):
    """A residual network with a stem of three convolutions, averages for strides, and attention.

    Attributes:
      features: of an image.
      stage_sizes: blocks in each stage; the first stage keeps the resolution, others halve it.
      width: features of the first stage before its expansion; each later stage doubles them.
      heads: attention heads of the pooling.
      dtype: computation dtype; parameters and running averages are float32.
    """

    features: int
    stage_sizes: Sequence[int]
    width: int
    heads: int
    dtype: jnp.dtype
    # In pixels: resolutions are rounded down, and smaller images leave nothing of the last map.
    min_image_size = 32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, maps_offset: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Embeds normalised images [B, H, W, 3].

        Returns:
          (features [B, features], intermediates): `stage1`.. [B, h, w, C] after each stage, and
          `maps`, the last one's, for class activation maps; `maps_offset` is added to these.
        """
        for index, (features, stride) in enumerate(
            [(self.width // 2, 2), (self.width // 2, 1), (self.width, 1)], 1
        ):
            x = conv(features, 3, stride, self.dtype, f"conv{index}")(x)
            x = nn.relu(batch_norm(train, self.dtype)(name=f"bn{index}")(x))
        x = _average(x, 2)
        intermediates = {}
        for stage, blocks in enumerate(self.stage_sizes):
            for index in range(blocks):
                x = Bottleneck(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_block{index}",
                )(x, train=train)
                x = block_output(x)
            intermediates[f"stage{stage + 1}"] = x
        maps = x if maps_offset is None else x + maps_offset
        x = AttentionPool(self.features, self.heads, self.dtype, name="attnpool")(maps)
        return x, {**intermediates, "maps": maps}

"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929), laid out as timm's.

Also DeiT's (Touvron et al. 2021, arXiv:2012.12877), with and without the distillation token.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from corm_jax.models.gelu import gelu
from corm_jax.models.head import classify_maps, linear_head
from corm_jax.models.normalizer import IMAGENET, INCEPTION, Statistics, normalize
from corm_jax.models.positions import sincos_positions
from corm_jax.models.remat import block_output

LAYER_NORM_EPSILON = 1e-6

# See `corm_jax.torch_weights`.
TORCH_NAMES = {
    "timm": {
        r"(cls|dist)_token|pos_embed|norm|head(_dist)?": r"\g<0>",
        r"patch_embed": "patch_embed.proj",
        r"block0?(\d+)/(norm\d)": r"blocks.\1.\2",
        r"block0?(\d+)/attn/(qkv|proj)": r"blocks.\1.attn.\2",
        r"block0?(\d+)/(fc\d)": r"blocks.\1.mlp.\2",
    },
    "torchvision": {
        r"cls_token": "class_token",
        r"pos_embed": "encoder.pos_embedding",
        r"norm": "encoder.ln",
        r"head": "heads.head",
        r"patch_embed": "conv_proj",
        r"block0?(\d+)/norm(\d)": r"encoder.layers.encoder_layer_\1.ln_\2",
        r"block0?(\d+)/attn/qkv/kernel": (
            r"encoder.layers.encoder_layer_\1.self_attention.in_proj_weight"
        ),
        r"block0?(\d+)/attn/qkv/bias": (
            r"encoder.layers.encoder_layer_\1.self_attention.in_proj_bias"
        ),
        r"block0?(\d+)/attn/proj": r"encoder.layers.encoder_layer_\1.self_attention.out_proj",
        r"block0?(\d+)/fc1": r"encoder.layers.encoder_layer_\1.mlp.0",
        r"block0?(\d+)/fc2": r"encoder.layers.encoder_layer_\1.mlp.3",
    },
}

# As big_vision's, and timm's `jax` scheme.
kernel_init = nn.initializers.xavier_uniform()


class PatchEmbed(nn.Module):
    """A linear projection of patches: a convolution whose stride is its kernel's size.

    Computed as one matrix product, which has derivatives of every order as fast as itself: XLA on a
    CPU takes most of a step for the weight gradient of such a convolution's input gradient, where
    that is penalised.
    """

    features: int
    patch_size: int
    dtype: jnp.dtype
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / patch_size, W / patch_size, features]."""
        batch, height, width, channels = images.shape
        size = self.patch_size
        shape = (size, size, channels, self.features)  # a convolution's, as weights are exchanged
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        patches = images.reshape(
            batch, height // size, size, width // size, size, channels
        ).swapaxes(2, 3)
        projected = jnp.einsum("bhwijc,ijcd->bhwd", patches, kernel)
        if not self.use_bias:
            return projected
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return projected + bias.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps tokens [B, N, D] to [B, N, D]; bool mask [N, N] of (query, key) allows attention."""
        batch, tokens, width = x.shape
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        qkv = dense(3 * width, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // self.heads) ** -0.5
        if mask is not None:
            scores = jnp.where(mask, scores, -jnp.inf)
        # Softmax in float32: bfloat16 rounds the small weights of long sequences away.
        weights = nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, width)
        return dense(width, name="proj")(out)


class Block(nn.Module):
    """Pre-norm transformer block; its activation is an exact (erf) GELU unless another is given."""

    heads: int
    mlp_ratio: int
    dtype: jnp.dtype
    epsilon: float = LAYER_NORM_EPSILON
    activation: Callable[[jax.Array], jax.Array] = gelu

    @nn.compact
    def __call__(
        self, x: jax.Array, *, mask: jax.Array | None = None, offset: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Maps tokens [B, N, D] to [B, N, D].

        Args:
          x: tokens.
          mask: bool [N, N] of (query, key): whom attention may see; None for all.
          offset: [B, N, D], added to the first norm's output.

        Returns:
          (tokens, the first norm's output with the offset).
        """
        norm = partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=kernel_init)
        normed = norm(name="norm1")(x)
        normed = normed if offset is None else normed + offset
        x = x + Attention(self.heads, self.dtype, name="attn")(normed, mask)
        y = dense(self.mlp_ratio * x.shape[-1], name="fc1")(norm(name="norm2")(x))
        return x + dense(x.shape[-1], name="fc2")(self.activation(y)), normed


class VisionTransformer(nn.Module):
    """A vision transformer classifier on images in [0, 1].

    Attributes:
      num_classes: number of logits.
      patch_size: height and width of a patch in pixels; the image's must be multiples of it.
      width: token dimension.
      depth: number of blocks.
      heads: attention heads a block; divides `width`.
      statistics: mean and standard deviation of the input normaliser.
      mlp_ratio: hidden width of a block's MLP over `width`.
      global_pool: "token" classifies the class token, "avg" the mean of the patch tokens
        (then there is no class token).
      distilled: a second token and head, as DeiT's for distillation. Logits are the mean of both
        heads', in training too: no loss here has a teacher that the second one could learn from.
      head_bias: whether the head has a bias, or both.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int
    patch_size: int
    width: int
    depth: int
    heads: int
    statistics: Statistics
    mlp_ratio: int = 4
    global_pool: str = "token"
    distilled: bool = False
    head_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, maps_offset: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          images: float [B, H, W, 3] in [0, 1].
          train: whether this is a training pass; ViTs do the same in both.
          maps_offset: float [B, h, w, D], added to `maps`; whoever differentiates to them takes the
            derivative to this.

        Returns:
          (logits float32 [B, num_classes], intermediates): `block00`.. [B, N, D] after each block,
          `tokens` [B, N, D] after the last norm, `pre_logits` [B, D] (distilled: the mean of what
          the two heads see), and `maps` [B, h, w, D], the patch tokens for class activation maps:
          those after the last norm if the head sees their mean, then with `class_maps` if it has no
          bias (see `corm_jax.models.head`). A class token's head gets nothing from the patch tokens
          of the last block, so that `maps` are then those after the last block's first norm, as in
          pytorch-grad-cam.
        """
        del train
        x = normalize(images, self.statistics).astype(self.dtype)
        x = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(x)
        rows, columns = x.shape[1:3]
        x = x.reshape(x.shape[0], rows * columns, self.width)
        names = ["cls_token"] if self.global_pool == "token" else []
        names += ["dist_token"] if self.distilled else []
        for name in reversed(names):
            token = self.param(name, nn.initializers.normal(1e-6), (1, 1, self.width))
            token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width))
            x = jnp.concatenate([token, x], axis=1)

        def positions(key: jax.Array) -> jax.Array:
            del key
            table = sincos_positions(rows, columns, self.width)
            return jnp.pad(table, ((len(names), 0), (0, 0)))[None]  # 0 for the tokens before

        x = x + self.param("pos_embed", positions).astype(self.dtype)
        intermediates = {}
        offset = None
        if maps_offset is not None:
            offset = maps_offset.reshape(len(x), rows * columns, self.width)
            offset = jnp.pad(offset, ((0, 0), (len(names), 0), (0, 0)))
        normed = x
        for index in range(self.depth):
            here = offset if names and index == self.depth - 1 else None
            block = Block(self.heads, self.mlp_ratio, self.dtype, name=f"block{index:02d}")
            x, normed = block(x, offset=here)
            x = block_output(x)
            intermediates[f"block{index:02d}"] = x
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")(x)
        if not names and offset is not None:
            x = x + offset
        intermediates["tokens"] = x
        patches = normed[:, len(names) :] if names else x
        maps = patches.reshape(len(x), rows, columns, self.width)
        heads = [
            linear_head(
                self.num_classes, bias=self.head_bias, kernel_init=nn.initializers.zeros, name=name
            )
            for name in ("head", "head_dist")[: max(1, len(names))]
        ]
        if not names:
            logits, pooled = classify_maps(heads[0], maps)
            return logits, {**intermediates, **pooled}
        seen = [x[:, index] for index in range(len(names))]
        intermediates |= {"maps": maps, "pre_logits": sum(seen) / len(seen)}
        logits = [
            head(features.astype(jnp.float32)) for head, features in zip(heads, seen, strict=True)
        ]
        return sum(logits) / len(logits), intermediates


_tiny = partial(VisionTransformer, width=192, depth=12, heads=3)
_small = partial(VisionTransformer, width=384, depth=12, heads=6)
_base = partial(VisionTransformer, width=768, depth=12, heads=12)
_large = partial(VisionTransformer, width=1024, depth=24, heads=16)
# The normalisers are those of timm's weights of the name.
_deit = {"patch_size": 16, "statistics": IMAGENET}

VARIANTS: dict[str, partial[VisionTransformer]] = {
    "vit_tiny_patch16_224": partial(_tiny, patch_size=16, statistics=INCEPTION),
    "vit_small_patch16_224": partial(_small, patch_size=16, statistics=INCEPTION),
    "vit_small_patch32_224": partial(_small, patch_size=32, statistics=INCEPTION),
    "vit_base_patch16_224": partial(_base, patch_size=16, statistics=INCEPTION),
    "vit_base_patch32_224": partial(_base, patch_size=32, statistics=INCEPTION),
    # 16 heads, and the norm before the pooling, as timm's of the name.
    "vit_base_patch16_gap_224": partial(
        _base, patch_size=16, statistics=INCEPTION, heads=16, global_pool="avg"
    ),
    "vit_large_patch16_224": partial(_large, patch_size=16, statistics=INCEPTION),
    "vit_large_patch32_224": partial(_large, patch_size=32, statistics=INCEPTION),
    "deit_tiny_patch16_224": partial(_tiny, **_deit),
    "deit_small_patch16_224": partial(_small, **_deit),
    "deit_base_patch16_224": partial(_base, **_deit),
    "deit_tiny_distilled_patch16_224": partial(_tiny, **_deit, distilled=True),
    "deit_small_distilled_patch16_224": partial(_small, **_deit, distilled=True),
    "deit_base_distilled_patch16_224": partial(_base, **_deit, distilled=True),
    # Ours, not timm's: small enough to train on a laptop's processor in minutes.
    "vit_nano_patch8_48": partial(
        VisionTransformer,
        patch_size=8,
        width=96,
        depth=4,
        heads=3,
        statistics=INCEPTION,
        mlp_ratio=2,
        global_pool="avg",
    ),
}

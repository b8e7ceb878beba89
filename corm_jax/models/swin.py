"""Swin transformers (Liu et al. 2021, arXiv:2103.14030), laid out as timm's.

Patches are merged at the start of a stage, as timm and not the authors' code has it. Images may
have any size in multiples of the patch's, as timm's models that are made with `img_size=...`: maps
are padded to whole windows, and where a map is smaller than a window, below images of 196 pixels,
the window is the map, and its table of biases is smaller.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from corm_jax.models.gelu import gelu
from corm_jax.models.head import classify_maps, linear_head
from corm_jax.models.normalizer import IMAGENET, Statistics, normalize
from corm_jax.models.remat import block_output
from corm_jax.models.vit import PatchEmbed

LAYER_NORM_EPSILON = 1e-5
MLP_RATIO = 4
# Added to scores between places that a cyclic shift brought together, as in the authors' code.
MASKED = -100.0

# See `corm_jax.torch_weights`.
TORCH_NAMES = {
    "timm": {
        r"patch_embed": "patch_embed.proj",
        r"patch_norm": "patch_embed.norm",
        r"layers(\d)_(norm|reduction)": r"layers.\1.downsample.\2",
        r"layers(\d)_block(\d+)/(norm\d)": r"layers.\1.blocks.\2.\3",
        r"layers(\d)_block(\d+)/(fc\d)": r"layers.\1.blocks.\2.mlp.\3",
        r"layers(\d)_block(\d+)/attn/(qkv|proj|relative_position_bias_table)": (
            r"layers.\1.blocks.\2.attn.\3"
        ),
        r"norm": r"\g<0>",
        r"head": "head.fc",
    }
}

kernel_init = nn.initializers.normal(0.02)


def relative_positions(rows: int, columns: int) -> np.ndarray:
    """Returns where in a window's table of biases each pair of places finds its own.

    The table has a row for each offset (dy, dx) of a query's place from a key's, from
    (1 - rows, 1 - columns) on, dx first.

    Args:
      rows: of the window.
      columns: of the window.

    Returns:
      int [rows * columns, rows * columns] of (query, key).
    """
    places = np.stack(np.mgrid[:rows, :columns], axis=-1).reshape(-1, 2)
    offsets = places[:, None] - places[None] + np.array([rows - 1, columns - 1])
    return offsets[..., 0] * (2 * columns - 1) + offsets[..., 1]


def partition(x: Any, window: tuple[int, int]) -> Any:
    """Returns the windows [B, windows, rows * columns, C] of maps [B, H, W, C], row by row.

    Args:
      x: numpy's or jax's; H and W are multiples of the window's.
      window: rows and columns of a window.
    """
    batch, height, width, features = x.shape
    rows, columns = window
    x = x.reshape(batch, height // rows, rows, width // columns, columns, features)
    return x.swapaxes(2, 3).reshape(batch, -1, rows * columns, features)


def join(windows: jax.Array, window: tuple[int, int], shape: tuple[int, int]) -> jax.Array:
    """Returns the maps [B, *shape, C] of their windows; the inverse of `partition`."""
    (height, width), (rows, columns) = shape, window
    x = windows.reshape(-1, height // rows, width // columns, rows, columns, windows.shape[-1])
    return x.swapaxes(2, 3).reshape(-1, height, width, windows.shape[-1])


def shifted_mask(
    shape: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> np.ndarray:
    """Returns what is added to the scores within each window of a cyclically shifted map.

    Args:
      shape: rows and columns of the padded map, multiples of the window's.
      window: rows and columns of a window.
      shift: rows and columns that the map is shifted by; 0 parts no places.

    Returns:
      float32 [windows, rows * columns, rows * columns]: `MASKED` between places that the shift
      brought together, else 0.
    """
    regions = np.zeros((1, *shape, 1), int)
    for axis, (length, size, step) in enumerate(zip(shape, window, shift, strict=True)):
        places = np.arange(length)
        region = (places >= length - size).astype(int) + (places >= length - step)
        region = region.reshape((1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1))
        regions = 3 * regions + (region if step else 0)
    windows = partition(regions, window)[0, ..., 0]
    return np.where(windows[:, :, None] == windows[:, None], 0.0, MASKED).astype(np.float32)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a bias for each relative position."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, window: tuple[int, int], mask: np.ndarray | None) -> jax.Array:
        """Maps windows to windows.

        Args:
          x: [B, windows, rows * columns, C].
          window: rows and columns of a window.
          mask: of `shifted_mask`, or None where nothing is masked.
        """
        width = x.shape[-1]
        dense = partial(nn.Dense, kernel_init=kernel_init, dtype=self.dtype)
        qkv = dense(3 * width, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, self.heads, -1), -3, 0)
        offsets = (2 * window[0] - 1) * (2 * window[1] - 1)
        table = self.param("relative_position_bias_table", kernel_init, (offsets, self.heads))
        bias = jnp.moveaxis(table[relative_positions(*window)], -1, 0)
        # Softmax in float32, as `corm_jax.models.vit`.
        scores = jnp.einsum("bnqhd,bnkhd->bnhqk", q, k) * (width // self.heads) ** -0.5
        scores = scores.astype(jnp.float32) + bias
        if mask is not None:
            scores = scores + mask[:, None]
        weights = nn.softmax(scores).astype(self.dtype)
        out = jnp.einsum("bnhqk,bnkhd->bnqhd", weights, v).reshape(x.shape)
        return dense(width, name="proj")(out)


class Block(nn.Module):
    """Attention within windows, then an MLP, each after a norm and beside a shortcut.

    Attributes:
      heads: of the attention.
      window: height and width of its windows; at most the map's are used.
      shifted: windows start half a window to the right and below, where the map is larger.
      dtype: computation dtype.
    """

    heads: int
    window: int
    shifted: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, C]."""
        norm = partial(nn.LayerNorm, epsilon=LAYER_NORM_EPSILON, dtype=self.dtype)
        dense = partial(nn.Dense, kernel_init=kernel_init, dtype=self.dtype)
        x = x + self._attend(norm(name="norm1")(x))
        y = gelu(dense(MLP_RATIO * x.shape[-1], name="fc1")(norm(name="norm2")(x)))
        return x + dense(x.shape[-1], name="fc2")(y)

    def _attend(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        window = (min(height, self.window), min(width, self.window))
        shift = tuple(
            self.window // 2 if self.shifted and length > self.window else 0
            for length in (height, width)
        )
        x = jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2))
        x = jnp.pad(x, ((0, 0), (0, -height % window[0]), (0, -width % window[1]), (0, 0)))
        padded = x.shape[1:3]
        mask = shifted_mask(padded, window, shift) if any(shift) else None
        attention = WindowAttention(self.heads, self.dtype, name="attn")
        x = join(attention(partition(x, window), window, mask), window, padded)
        return jnp.roll(x[:, :height, :width], shift, axis=(1, 2))


class SwinTransformer(nn.Module):
    """A Swin transformer classifier on images in [0, 1].

    Attributes:
      num_classes: number of logits.
      patch_size: height and width of a patch in pixels; the image's must be multiples of it.
      depths: blocks in each stage; each after the first halves the resolution, rounding up.
      width: features of the first stage; each later stage doubles them.
      heads: attention heads in each stage.
      statistics: mean and standard deviation of the input normaliser.
      window: height and width of the attention's windows in tokens.
      head_bias: whether the head has a bias.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int
    patch_size: int
    depths: Sequence[int]
    width: int
    heads: Sequence[int]
    statistics: Statistics
    window: int = 7
    head_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, maps_offset: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images.

        Args:
          images: float [B, H, W, 3] in [0, 1].
          train: whether this is a training pass; Swin transformers do the same in both.
          maps_offset: float [B, h, w, K], added to `maps`; whoever differentiates to them takes the
            derivative to this.

        Returns:
          (logits float32 [B, num_classes], intermediates): `stage1`.. [B, h, w, C] after each
          stage, the last after the last norm; `maps` (that one, for class activation maps),
          `pre_logits` [B, C], and `class_maps` if the head has no bias (see
          `corm_jax.models.head`).
        """
        del train
        norm = partial(nn.LayerNorm, epsilon=LAYER_NORM_EPSILON, dtype=self.dtype)
        dense = partial(nn.Dense, kernel_init=kernel_init)
        x = normalize(images, self.statistics).astype(self.dtype)
        x = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(x)
        x = norm(name="patch_norm")(x)
        intermediates = {}
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage > 0:
                x = norm(name=f"layers{stage}_norm")(_merge(x))
                features = self.width * 2**stage
                x = dense(
                    features, use_bias=False, dtype=self.dtype, name=f"layers{stage}_reduction"
                )(x)
            for index in range(depth):
                name = f"layers{stage}_block{index}"
                block = Block(heads, self.window, index % 2 == 1, self.dtype, name=name)
                x = block_output(block(x))
            if stage == len(self.depths) - 1:
                x = norm(name="norm")(x)
            intermediates[f"stage{stage + 1}"] = x
        maps = x if maps_offset is None else x + maps_offset
        head = linear_head(
            self.num_classes, bias=self.head_bias, kernel_init=kernel_init, name="head"
        )
        logits, pooled = classify_maps(head, maps)
        return logits, {**intermediates, **pooled}


def _merge(x: jax.Array) -> jax.Array:
    """Joins the features of 2x2 places: [B, H, W, C] to [B, H / 2, W / 2, 4 C], rounded up.

    The left column's two places come first, each upper one before the lower.
    """
    batch, height, width, features = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = x.shape[1] // 2, x.shape[2] // 2
    x = x.reshape(batch, rows, 2, columns, 2, features).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(batch, rows, columns, 4 * features)


_swin = partial(SwinTransformer, patch_size=4, statistics=IMAGENET)

VARIANTS: dict[str, partial[SwinTransformer]] = {
    "swin_tiny_patch4_window7_224": partial(
        _swin, depths=(2, 2, 6, 2), width=96, heads=(3, 6, 12, 24)
    ),
    "swin_small_patch4_window7_224": partial(
        _swin, depths=(2, 2, 18, 2), width=96, heads=(3, 6, 12, 24)
    ),
    "swin_base_patch4_window7_224": partial(
        _swin, depths=(2, 2, 18, 2), width=128, heads=(4, 8, 16, 32)
    ),
}

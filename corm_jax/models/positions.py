"""Position embeddings of patches: where they start, and at another number of patches."""

import jax
import jax.numpy as jnp


def sincos_positions(rows: int, columns: int, width: int) -> jax.Array:
    """Returns sines and cosines of patches' places, where position embeddings start training.

    A quarter of the features each: sin(x w), cos(x w), sin(y w), cos(y w), with frequencies w that
    fall geometrically from 1 to 1/10,000. The features that a quarter leaves over are zero.

    Args:
      rows: of patches; y counts them from 0.
      columns: of patches; x counts them from 0.
      width: features of a token, 8 or more.

    Returns:
      float32 [rows * columns, width], row by row.

    Source: MoCo v3 (Chen, Xie and He 2021, arXiv:2104.02057), in big_vision's layout (its
    `sincos2d`: Beyer, Zhai and Kolesnikov 2022, arXiv:2205.01580). Both keep the embedding fixed;
    here it is a parameter, as in timm, that starts from it.
    """
    frequencies = 10_000 ** -jnp.linspace(0.0, 1.0, width // 4, dtype=jnp.float32)
    y, x = jnp.mgrid[:rows, :columns].reshape(2, -1, 1).astype(jnp.float32) * frequencies
    table = jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)
    return jnp.pad(table, ((0, 0), (0, width - table.shape[1])))


def resample_positions(table: jax.Array, old: int, new: int) -> jax.Array:
    """Interpolates position embeddings to another number of patches, bicubically.

    As timm's `resample_abs_pos_embed`: smoothed before the grid gets coarser; rows before the
    patches', of class and distillation tokens, stay.

    Args:
      table: float32 [1, tokens + old * old, D], patches row by row.
      old: patches along a side.
      new: patches along a side.

    Returns:
      float32 [1, tokens + new * new, D].
    """
    tokens, width = table.shape[1] - old * old, table.shape[2]
    grid = jnp.asarray(table[:, tokens:]).reshape(1, old, old, width)
    grid = jax.image.resize(grid, (1, new, new, width), "bicubic", precision="highest")
    return jnp.concatenate([table[:, :tokens], grid.reshape(1, new * new, width)], axis=1)

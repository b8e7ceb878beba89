"""Resampling of masks on the device: the crop's pixels looked up in the mask's own frame.

A *window* is the crop in the coordinates of the mask's frame: (top, left, bottom, right) with
(0, 0, 1, 1) the whole frame. A flipped crop has left > right; parts of a crop that the frame does
not cover lie outside [0, 1].
"""

import jax
import jax.numpy as jnp


def _positions(start: jax.Array, stop: jax.Array, size: int) -> jax.Array:
    """Returns the pixel centres [B, size] of windows between start [B] and stop [B]."""
    centers = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return start[:, None] + (stop - start)[:, None] * centers[None, :]


def _weights(positions: jax.Array, cells: int) -> jax.Array:
    """Returns bilinear weights [B, size, cells]; positions beyond the outer cells take them."""
    coordinates = jnp.clip(positions * cells - 0.5, 0.0, cells - 1.0)
    distances = jnp.abs(coordinates[..., None] - jnp.arange(cells, dtype=jnp.float32))
    return jnp.maximum(0.0, 1.0 - distances)


def resample(masks: jax.Array, windows: jax.Array, size: int) -> jax.Array:
    """Resamples masks bilinearly (half-pixel centres) to crops.

    Two small matrix products an image, so that accelerators do it at nearly no cost.

    Args:
      masks: float32 [B, h, w] in [0, 1] in their frames.
      windows: float32 [B, 4]; see the module's docstring.
      size: height and width of the crops in pixels.

    Returns:
      float32 [B, size, size, 1] in [0, 1].
    """
    rows = _weights(_positions(windows[:, 0], windows[:, 2], size), masks.shape[1])
    columns = _weights(_positions(windows[:, 1], windows[:, 3], size), masks.shape[2])
    resampled = jnp.einsum(
        "byh,bhw,bxw->byx", rows, masks, columns, precision=jax.lax.Precision.HIGHEST
    )
    return resampled[..., None]


def validity(windows: jax.Array, size: int) -> jax.Array:
    """Returns float32 [B, size, size, 1]: 1 where a pixel's centre lies inside the mask's frame.

    Args:
      windows: float32 [B, 4]; see the module's docstring.
      size: height and width of the crops in pixels.
    """
    # An image's edge may leave the frame by rounding alone.
    tolerance = 1e-5
    rows = _positions(windows[:, 0], windows[:, 2], size)
    columns = _positions(windows[:, 1], windows[:, 3], size)
    inside_rows = (rows >= -tolerance) & (rows <= 1.0 + tolerance)
    inside_columns = (columns >= -tolerance) & (columns <= 1.0 + tolerance)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return inside[..., None].astype(jnp.float32)


def area_average(maps: jax.Array, height: int, width: int) -> jax.Array:
    """Averages maps over the cells of a grid; pixels across an edge count by the part inside.

    Args:
      maps: float32 [B, H, W, K].
      height: rows of the grid.
      width: columns of the grid.

    Returns:
      float32 [B, height, width, K].
    """
    rows, columns = _overlaps(maps.shape[1], height), _overlaps(maps.shape[2], width)
    return jnp.einsum("yh,bhwk,xw->byxk", rows, maps, columns, precision=jax.lax.Precision.HIGHEST)


def _overlaps(pixels: int, cells: int) -> jax.Array:
    """Returns [cells, pixels]: the share of each cell that each pixel covers."""
    # In units of 1 / (pixels cells), where both kinds of edges are integers.
    cell, pixel = pixels * jnp.arange(cells)[:, None], cells * jnp.arange(pixels)[None, :]
    covered = jnp.minimum(cell + pixels, pixel + cells) - jnp.maximum(cell, pixel)
    return jnp.maximum(covered, 0).astype(jnp.float32) / pixels

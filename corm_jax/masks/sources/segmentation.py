"""Decodes COCO's segmentations: polygons and run lengths."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from corm_jax.errors import UserError

ROUNDING = 1  # pixels that a corner may be outside its image


def check_installed() -> None:
    """Raises UserError if pycocotools, which fills polygons, is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise UserError("the format coco needs pycocotools: pip install 'corm_jax[coco]'")


def decode(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """Returns a segmentation as bool [height, width].

    Args:
      segmentation: a list of polygons, or run lengths {"size", "counts"}.
      height: of the image, in pixels.
      width: likewise.
      where: which annotation it is, for messages.

    Raises:
      UserError: if it does not follow COCO's format, or does not fit the image.
    """
    if isinstance(segmentation, list):
        if not segmentation:
            raise UserError(f"{where} has no segmentation; for its box, import --format=boxes")
        segmentation = _encode(segmentation, height, width, where)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise UserError(f"{where}: the segmentation is neither polygons nor run lengths")
    if segmentation["size"] != [height, width]:
        raise UserError(
            f"{where}: run lengths of size {segmentation['size']}, the image is [{height}, {width}]"
        )
    runs = segmentation["counts"]
    if isinstance(runs, str):
        runs = _decompress(runs, where)
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise UserError(f"{where}: the counts are no run lengths")
    if sum(runs) != height * width:
        raise UserError(f"{where}: runs of {sum(runs)} pixels, the image has {height * width}")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pixels.reshape(width, height).T


def _encode(polygons: Sequence[Any], height: int, width: int, where: str) -> dict[str, Any]:
    """Returns the run lengths of the union of polygons."""
    from pycocotools import mask

    for polygon in polygons:
        _check_polygon(polygon, height, width, where)
    union = mask.merge(mask.frPyObjects(polygons, height, width))
    return {"size": [height, width], "counts": union["counts"].decode()}


def _check_polygon(polygon: Any, height: int, width: int, where: str) -> None:
    numbers = isinstance(polygon, list) and all(isinstance(x, int | float) for x in polygon)
    if not numbers or len(polygon) < 6 or len(polygon) % 2:
        raise UserError(f"{where}: a polygon is not a list of 3 or more corners x, y")
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    limits = np.array([width, height]) + ROUNDING
    outside = ~((corners >= -ROUNDING) & (corners <= limits)).all(axis=1)
    if outside.any():
        x, y = corners[outside][0]
        raise UserError(
            f"{where}: the corner {x:g}, {y:g} is outside its image of {width} x {height} pixels"
        )


def _decompress(text: str, where: str) -> list[int]:
    """Returns the run lengths of COCO's compressed string.

    Each character, less 48, holds five bits of a number, the lowest first, and in bit 5 whether
    more follow; the last one's bit 4 is the sign. From the fourth number on (pycocotools's
    rleToString), it is the difference to the number two before. pycocotools itself would leave
    pixels undefined where the runs are too short.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise UserError(f"{where}: character {character!r} in the compressed counts")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise UserError(f"{where}: the compressed counts are cut off")
    return runs

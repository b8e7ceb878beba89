"""The pixels of mask records, decoded on the host: for looking at masks, not for training."""

import io
import struct

import numpy as np
from PIL import Image

from corm_jax.errors import UserError
from corm_jax.masks import png
from corm_jax.masks.records import MaskSource

# What Pillow raises for damaged files, found by feeding it such.
DAMAGE = (OSError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)


def decode(data: bytes, what: str) -> np.ndarray:
    """Decodes a PNG mask, its checksums included.

    Args:
      data: the file.
      what: what the mask is, for the message.

    Returns:
      uint8 [h, w]; masks of fewer bits are scaled to 255.

    Raises:
      UserError: if it is damaged, or not a grey PNG of at most 8 bits.
    """
    png.mask_size(data, what)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()  # the checksums; leaves the image unusable
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image.convert("L"))
    except DAMAGE as error:
        raise UserError(f"{what} is a damaged PNG ({error})") from error


def read(records: MaskSource, kind: str, row: int) -> np.ndarray:
    """Returns the mask of a row, uint8 [h, w], zeros in a grid if it has none of this kind.

    Raises:
      UserError: if it is a damaged PNG.
    """
    if records.encoding == "grid":
        return records.grids(kind, np.array([row]))[0]
    return decode(records.png(kind, row), f"{records.describe(row)}: {kind} mask")

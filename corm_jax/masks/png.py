"""PNG masks: what their header must say, and how they are written."""

import io
import struct

import numpy as np
from PIL import Image

from corm_jax.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = 26  # up to the colour type
GREY = 0
COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}


def mask_size(data: bytes, what: str) -> tuple[int, int]:
    """Returns (height, width) of a PNG mask from its header, and refuses what is not one.

    Palette indices, colours and opacity have no meaning as a mask, so they are refused rather
    than turned into some brightness.

    Args:
      data: the file, or its first `HEADER_BYTES`.
      what: what the mask is, for the message.

    Raises:
      UserError: if it is not a grey PNG of at most 8 bits; names the mask and the way out.
    """
    if len(data) < HEADER_BYTES or not data.startswith(SIGNATURE):
        raise UserError(f"{what} is not a readable PNG file")
    width, height, bits, colour = struct.unpack(">IIBB", data[16:HEADER_BYTES])
    if colour != GREY or bits > 8:
        raise UserError(
            f"{what} is a {bits}-bit {COLOUR_TYPES.get(colour, 'unknown')} PNG; convert it to "
            "8-bit grey, 255 on the object"
        )
    return height, width


def encode(mask: np.ndarray) -> bytes:
    """Returns a mask as a grey PNG file: 1-bit where that loses nothing, else 8-bit.

    Args:
      mask: uint8 [h, w].
    """
    hard = not ((mask > 0) & (mask < 255)).any()
    file = io.BytesIO()
    Image.fromarray(mask > 0 if hard else mask).save(file, "PNG")
    return file.getvalue()

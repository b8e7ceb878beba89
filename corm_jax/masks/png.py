"""PNG masks: what their header must say, and how they are written."""

import struct
import zlib

import numpy as np

from corm_jax.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = 26  # up to the colour type
GREY = 0
UP_FILTER = 2
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
    """Encodes a mask as an 8-bit grey PNG, each row stored as its difference to the row above.

    Upsampled masks change little from row to row: this filter halves their files and takes a third
    of the time to decode of the filters that image libraries choose, which cannot be told to.

    Args:
      mask: uint8 [h, w].
    """
    height, width = mask.shape
    above = np.concatenate([np.zeros((1, width), np.uint8), mask[:-1]])
    rows = np.concatenate([np.full((height, 1), UP_FILTER, np.uint8), mask - above], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, GREY, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows.tobytes()), b"IEND": b""}
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks.items())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

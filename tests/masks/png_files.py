"""Small PNG files."""

import io

import numpy as np
from PIL import Image

WHITE = np.full((3, 5), 255, np.uint8)


def png_file(pixels: np.ndarray, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()

"""Pictures as masks: read as grey, refused where their numbers mean something else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from corm_jax.errors import UserError
from corm_jax.masks import pixels, png

SUFFIXES = (".png", ".jpg", ".jpeg")
DARK = 16  # of 255: masks are not that dark everywhere, numbers of labels are
SAMPLED = 20
MAX_PIXELS = 100_000_000  # of a size that a text file claims, before memory is taken for it


def read_picture(path: Path) -> Image.Image:
    """Returns a JPEG or PNG picture, decoded, in the mode and orientation that the file has.

    Raises:
      UserError: if it is damaged, or something else.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            picture.load()
            return picture
    except pixels.DAMAGE as error:
        raise UserError(f"mask {path} cannot be read as JPEG or PNG ({error})") from error


def read_grey(path: Path) -> np.ndarray:
    """Returns a grey PNG (at most 8 bits) or JPEG as uint8 [h, w]; 1-bit white is 255.

    Raises:
      UserError: if it is damaged, or in colours, with opacity or with a palette.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if data.startswith(png.SIGNATURE):
        return pixels.decode(data, f"mask {path}")
    picture = read_picture(path)
    if picture.mode != "L":
        raise UserError(
            f"mask {path} is a JPEG of mode {picture.mode}; convert it to 8-bit grey, 255 on the "
            "object"
        )
    return np.asarray(picture)


def check_white(paths: Sequence[Path]) -> None:
    """Refuses label maps, such as of 0 and 1: as masks they are all but black.

    Args:
      paths: grey masks; a sample of them is read.

    Raises:
      UserError: if the brightest pixel of the sample is dark but not black.
    """
    sample = paths[:: max(1, len(paths) // SAMPLED)]
    brightest = max((int(read_grey(path).max()) for path in sample), default=0)
    if 0 < brightest < DARK:
        raise UserError(
            f"the brightest pixel of {len(sample)} masks, such as {sample[0]}, is {brightest} of "
            "255; write 255 on the object"
        )


def check_size(height: int, width: int, where: str) -> None:
    """Raises UserError unless an image of this size, in pixels, can be."""
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise UserError(f"{where}: an image of {width} x {height} pixels cannot be")

"""Masks of the format hard_imagenet: object masks named after class and image.

    <input>/train/n02422106_n02422106_1234.JPEG               wnid, "_", the image's file name
    <input>/val/n02422106_ILSVRC2012_val_00000001.JPEG        suffix .JPEG, .jpg or .png

One of train and val may be missing; other directories and hidden files are ignored. A mask covers
its whole image and is grey, or has three equal channels (up to JPEG's error). The authors' loader
takes pixels above 0 as object; but JPEG leaves small values beside the edges, so here it is 128 and
more (a choice of this project). The image's file name ends in .JPEG whatever the mask's suffix is.
Masks without any object are left out and counted.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from corm_jax.errors import UserError
from corm_jax.masks.records import FULL_FRAME
from corm_jax.masks.sources.pictures import read_grey, read_picture
from corm_jax.masks.sources.source import Row, Source
from corm_jax.masks.sources.tree import visible_files

SPLITS = ("train", "val")
NAME = re.compile(r"(n\d{8})_(\1_\d+|ILSVRC2012_val_\d{8})\.(?:jpe?g|png)", re.IGNORECASE)
OBJECT = 128  # of 255
CHANNEL_ERROR = 8  # of 255: between channels of a grey picture that JPEG stores in colour


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this format's arguments: none."""


def open_source(path: Path, arguments: argparse.Namespace) -> Source:
    """Opens the masks at `path`.

    Raises:
      UserError: if there are none, or the name of one does not follow; names the file.
    """
    return HardImageNetSource(path)


class HardImageNetSource:
    """Masks of Hard ImageNet; a `Source`."""

    frame: dict[str, Any] = FULL_FRAME

    def __init__(self, root: Path) -> None:
        """Lists the masks below `root`."""
        self.note = "object masks of Hard ImageNet"
        self.skipped: Counter[str] = Counter()
        self._paths: dict[str, Path] = {}
        for path in _paths(root):
            match = NAME.fullmatch(path.name)
            if match is None:
                raise UserError(
                    f"{path} is not named <wnid>_<image file name>, such as "
                    "n02422106_n02422106_1234.JPEG"
                )
            name = f"{match[2]}.JPEG"
            if name in self._paths:
                raise UserError(
                    f"{self._paths[name]} and {path} are masks of one image, {name}; remove one"
                )
            self._paths[name] = path

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of the masks' paths."""
        for name, path in self._paths.items():
            inside = _read(path) >= OBJECT
            if inside.any():
                yield Row(name, core=np.where(inside, np.uint8(255), np.uint8(0)))
            else:
                self.skipped[f"masks without a pixel of {OBJECT} or more"] += 1


def _paths(root: Path) -> list[Path]:
    """Returns the paths of the masks of both splits."""
    splits = [root / split for split in SPLITS if (root / split).is_dir()]
    paths = [split / file for split in splits for file in visible_files(split)]
    if not paths:
        raise UserError(f"{root} holds no masks in train/ or val/")
    return paths


def _read(path: Path) -> np.ndarray:
    """Returns a mask as uint8 [h, w]."""
    picture = read_picture(path)
    if picture.mode != "RGB":
        return read_grey(path)
    channels = np.asarray(picture)
    spread = int(np.ptp(channels, axis=-1).max())
    if spread > CHANNEL_ERROR:
        raise UserError(f"mask {path} is in colours (channels differ by {spread} of 255)")
    return channels[..., 1]

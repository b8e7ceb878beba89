"""A folder of images and masks.

    <folder>/images/<class>/<id>.<jpg|jpeg|png>
    <folder>/masks/<class>/<id>.png     grey, 8-bit soft or 1-bit, white on the object

A mask may be missing. Pixels are taken as they are stored: an orientation in a JPEG's EXIF data is
ignored, so a mask has the orientation of the stored pixels. File names in the sense of the join
are `<class>/<id>`.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from corm_jax.data.geometry import check_aspect
from corm_jax.errors import UserError
from corm_jax.masks import png
from corm_jax.masks.records import FULL_FRAME, KINDS, whole_image
from corm_jax.masks.sources.pictures import check_white

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LAYOUT = "expected images/<class>/<id>.jpg|jpeg|png and masks/<class>/<id>.png"


class FolderImages:
    """The images of some of a folder's files; an `ImageSource`."""

    def __init__(self, paths: Sequence[Path], class_names: Sequence[str]) -> None:
        """Holds the images at `paths`, each in a directory named as one of `class_names`."""
        self._paths = list(paths)
        self.class_names = tuple(class_names)
        number = {name: index for index, name in enumerate(self.class_names)}
        self._labels = np.array([number[path.parent.name] for path in paths], np.int32)
        self.file_names = _names(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns (encoded image, label) of each index."""
        return [(_read(self._paths[i]), int(self._labels[i])) for i in indices]

    def labels(self) -> np.ndarray:
        """Returns the label of every image, int32 [N]."""
        return self._labels

    def describe(self, index: int) -> str:
        """Returns the path of an image, for messages."""
        return str(self._paths[index])


class FolderMasks:
    """The masks of a folder as a `MaskSource`: core masks only, PNG, over the whole image."""

    encoding = "png"
    size = None
    frame: dict[str, Any] = FULL_FRAME

    def __init__(self, paths: Sequence[Path]) -> None:
        """Holds the masks at `paths`."""
        self._paths = list(paths)
        self.file_names = _names(self._paths)

    def has(self, kind: str) -> np.ndarray:
        """Returns bool [N]: which rows have a mask of this kind."""
        return np.full(len(self._paths), kind == KINDS[0])

    def grids(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Never called: these masks are PNG files."""
        raise TypeError("folder masks are PNG files")

    def png(self, kind: str, row: int) -> bytes:
        """Returns the PNG file of a row."""
        return _read(self._paths[row])

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """Returns the whole image for each row, float32 [len(rows), 4]."""
        return whole_image(len(rows))

    def describe(self, row: int) -> str:
        """Returns the path of a mask, for messages."""
        return str(self._paths[row])


def open_folder(
    folder: Path, validation_share: float
) -> tuple[FolderImages, FolderImages, FolderMasks]:
    """Opens a folder and splits it.

    The split is deterministic and within each class: of its images in the order of a hash of
    their names, the first share is for validation (at least one), the rest for training.

    Args:
      folder: see the module's docstring.
      validation_share: share of each class's images for validation, in (0, 1).

    Returns:
      (training images, validation images, masks of both).

    Raises:
      UserError: if the layout is another, or a mask does not fit its image; names the file.
    """
    by_class: dict[str, list[Path]] = {}
    for directory in _class_directories(folder / "images"):
        images = _files(directory, IMAGE_SUFFIXES)
        if len(images) < 2:
            raise UserError(f"{directory} holds {len(images)} images; a class needs 2 or more")
        by_class[directory.name] = images
    if len(by_class) < 2:
        raise UserError(f"{folder}/images holds {len(by_class)} classes, not 2 or more; {LAYOUT}")
    training, validation = [], []
    for images in by_class.values():
        ranked = sorted(images, key=lambda path: _hash(f"{path.parent.name}/{path.stem}"))
        count = min(len(ranked) - 1, max(1, round(validation_share * len(ranked))))
        validation += ranked[:count]
        training += ranked[count:]
    masks: list[Path] = []
    if (folder / "masks").is_dir():
        for directory in _class_directories(folder / "masks"):
            masks += _files(directory, (".png",))
    _check_sizes(training + validation, masks)
    check_white(masks)
    class_names = sorted(by_class)
    return (
        FolderImages(sorted(training), class_names),
        FolderImages(sorted(validation), class_names),
        FolderMasks(sorted(masks)),
    )


def _class_directories(path: Path) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; {LAYOUT}")
    return sorted(d for d in path.iterdir() if d.is_dir() and not d.name.startswith("."))


def _files(directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found: dict[str, Path] = {}
    ignored = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in suffixes:
            ignored.append(path.name)
            continue
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path} have the same id; rename one of them")
        found[path.stem] = path
    if ignored:
        logger.warning(
            "%d files in %s are ignored, such as %s: only %s are read",
            len(ignored),
            directory,
            ignored[0],
            ", ".join(suffixes),
        )
    return list(found.values())


def _read(path: Path, size: int = -1) -> bytes:
    """Returns the first `size` bytes of a file, or all."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _names(paths: Sequence[Path]) -> np.ndarray:
    return np.array([os.fsencode(f"{path.parent.name}/{path.stem}") for path in paths], np.bytes_)


def _hash(name: str) -> bytes:
    return hashlib.sha256(os.fsencode(name)).digest()


def _check_sizes(images: Sequence[Path], masks: Sequence[Path]) -> None:
    by_name = {(path.parent.name, path.stem): path for path in masks}
    for path in tqdm(images, desc="checking masks", unit="image", delay=2, leave=False):
        mask = by_name.get((path.parent.name, path.stem))
        if mask is None:
            continue
        mask_size = png.mask_size(_read(mask, png.HEADER_BYTES), f"mask {mask}")
        image_size = _size(path)
        if image_size is not None:  # an unreadable image is the decoder's to report
            check_aspect(image_size, mask_size, f"mask {mask}", f"image {path}")


def _size(path: Path) -> tuple[int, int] | None:
    """Returns (height, width) from a file's header, None if it is not an image."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError):
        return None

"""The images that mask records are of, found by file name: for looking at masks."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from corm_jax.data.join import join
from corm_jax.errors import UserError
from corm_jax.masks.classes import class_of
from corm_jax.masks.sources.tree import visible_files

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Image:
    """An image as it is stored.

    Attributes:
      data: an encoded JPEG or PNG.
      class_name: what it shows.
      where: its path, or its place in a data set, for messages.
    """

    data: bytes
    class_name: str
    where: str


@dataclass(frozen=True)
class Images:
    """The images of some mask records.

    Attributes:
      rows: int64 [images], the rows of the records that have an image.
      read: row -> its image.
    """

    rows: np.ndarray
    read: Callable[[int], Image]


def from_tree(root: Path, file_names: np.ndarray) -> Images:
    """Finds images in a tree of files.

    A file is the image of a record that is named as the file's path below `root`, as its last two
    parts <class>/<id>, or as the file alone; in each case with or without suffix.

    Args:
      root: the tree.
      file_names: bytes [records], names of the records.

    Raises:
      UserError: if there is no such directory, no image is found, or two are for one record.
    """
    row_of = {os.fsdecode(name): row for row, name in enumerate(file_names.tolist())}
    paths: dict[int, Path] = {}
    for relative in visible_files(root):
        path = PurePath(relative)
        if path.suffix.lower() not in SUFFIXES:
            continue
        for name in (relative, "/".join(path.parts[-2:]), path.name):
            for key in (name, str(PurePath(name).with_suffix(""))):
                row = row_of.get(key)
                if row is None:
                    continue
                other = paths.setdefault(row, root / path)
                if other != root / path:
                    raise UserError(f"{other} and {root / path} may both be the image of {key!r}")
    if not paths:
        example = os.fsdecode(file_names[0]) if len(file_names) else "none"
        raise UserError(f"{root} holds no image of the records, such as {example!r}")

    def read(row: int) -> Image:
        try:
            data = paths[row].read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {paths[row]}: {error.strerror}") from error
        return Image(data, class_of(str(paths[row])), str(paths[row]))

    return Images(np.array(sorted(paths)), read)


def from_dataset(name: str, data_dir: Path | None, split: str, file_names: np.ndarray) -> Images:
    """Finds images in a split of a TFDS data set.

    Args:
      name: "data_set" or "data_set/config".
      data_dir: where TFDS data sets are; TFDS's default if None.
      split: name of the split.
      file_names: bytes [records], names of the records.

    Raises:
      UserError: if the data set is not prepared, or none of its images has a record.
    """
    from corm_jax.data import tfds_source  # imports tensorflow, which nobody else here needs

    data_dir = (data_dir or tfds_source.default_data_dir()).expanduser()
    images = tfds_source.TfdsImages(tfds_source.find_prepared(name, data_dir), split)
    rows = join(images.file_names, file_names).rows
    index_of = {int(row): index for index, row in enumerate(rows) if row >= 0}
    if not index_of:
        raise UserError(f"no image of {name}, split {split}, has a mask record; try another split")

    def read(row: int) -> Image:
        index = index_of[row]
        [(data, label)] = images.read([index])
        return Image(data, images.class_names[label], images.describe(index))

    return Images(np.array(sorted(index_of)), read)

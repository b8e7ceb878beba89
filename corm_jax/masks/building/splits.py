"""The images that masks are built for: splits of a data set, without masks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from corm_jax.data import folder, pipeline, prepare, tfds_source
from corm_jax.errors import UserError, lookup
from corm_jax.masks.records import FULL_FRAME, MaskRecords, MaskSource, whole_image


@dataclass(frozen=True)
class Splits:
    """A data set's images.

    Attributes:
      images: of each split, by "train" and, where there is one, "validation".
      masks: the data set's own masks, None if it has none: to compare with, never to build from.
    """

    images: dict[str, pipeline.ImageSource]
    masks: MaskSource | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self.images["train"].class_names


class NoMasks:
    """A `MaskSource` without records, for a loader of images alone."""

    encoding = "grid"
    size = (1, 1)
    frame: dict[str, Any] = FULL_FRAME
    file_names = np.zeros(0, np.bytes_)

    def has(self, kind: str) -> np.ndarray:
        """Returns bool [0]."""
        del kind
        return np.zeros(0, bool)

    def grids(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Returns an empty mask for each row."""
        del kind
        return np.zeros((len(rows), *self.size), np.uint8)

    def png(self, kind: str, row: int) -> bytes:
        """Never called: these masks are grids."""
        raise TypeError("these masks are grids")

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """Returns the whole image for each row."""
        return whole_image(len(rows))

    def describe(self, row: int) -> str:
        """Never called: no image has a row."""
        raise TypeError(f"there is no row {row}")


def unmasked(images: pipeline.ImageSource) -> pipeline.Split:
    """Returns images as a split in which none has a mask."""
    no_rows = np.full(len(images), -1)
    return pipeline.Split(images, NoMasks(), no_rows, no_rows >= 0)


def open_splits(config: ConfigDict) -> Splits:
    """Opens the images that `config.data` names.

    Raises:
      UserError: if they are not there; says what to do.
    """
    splits = lookup(SOURCES, config.data.source, "config.data.source")(config)
    if not config.masks.validation:
        splits.images.pop("validation", None)
    return splits


def _open_tfds(config: ConfigDict) -> Splits:
    data = config.data
    data_dir = Path(data.data_dir or tfds_source.default_data_dir()).expanduser()
    masks = None
    if data.tfds_name.partition("/")[0] == prepare.EMBEDDED:
        directory, own = prepare.prepare_embedded(data.tfds_name, data_dir)
        masks = MaskRecords.open(own)
    else:
        directory = tfds_source.find_prepared(data.tfds_name, data_dir)
    names = {"train": data.train_split, "validation": data.validation_split}
    images = {key: tfds_source.TfdsImages(directory, name) for key, name in names.items() if name}
    return Splits(images, masks)


def _open_folder(config: ConfigDict) -> Splits:
    if not config.data.folder:
        raise UserError("name your folder: --config.data.folder=DIR; " + folder.LAYOUT)
    path = Path(config.data.folder).expanduser()
    train, validation, masks = folder.open_folder(path, config.data.validation_share)
    own = masks if len(masks.file_names) else None
    return Splits({"train": train, "validation": validation}, own)


SOURCES = {"tfds": _open_tfds, "folder": _open_folder}

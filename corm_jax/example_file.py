"""The file in which an evaluation keeps what a model saw of a few images, and said to it."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corm_jax.errors import UserError
from corm_jax.files import replacing

FILE_NAME = "examples.npz"
VERSION = 1
# Fields that are one array each, and fields that are arrays by name: FIELD/NAME in the file.
ARRAYS = ("id", "label", "class_names", "core_mask", "core_region")
NAMED = ("views", "shown", "predictions", "probabilities", "saliency")


@dataclass(frozen=True)
class Examples:
    """A few images of an evaluation.

    Attributes:
      id: uint32 [N], the images' (`corm_jax.data.pipeline.identity`).
      label: int32 [N].
      class_names: str [C], in the order of the labels.
      core_mask: uint8 [N, S, S], 255 where it is 1.
      core_region: uint8 [N, S, S], the core region of the `complement` protocol.
      views: name -> uint8 [N, S, S, 3], what the protocols show the model; `image` as it is.
      shown: name of a view -> bool [N], whether it shows what it is named for.
      predictions: name of a view -> int32 [N], the class that the model finds.
      probabilities: name of a view -> float32 [N], of that class, in [0, 1].
      saliency: method -> uint8 [N, h, w], 255 where it is largest; empty for a model of another
        library.
    """

    id: np.ndarray
    label: np.ndarray
    class_names: np.ndarray
    core_mask: np.ndarray
    core_region: np.ndarray
    views: dict[str, np.ndarray]
    shown: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]
    saliency: dict[str, np.ndarray]


def write(path: Path, examples: Examples) -> None:
    """Writes the file, whole or not at all."""
    arrays = {"version": np.asarray(VERSION)} | {name: getattr(examples, name) for name in ARRAYS}
    for field in NAMED:
        arrays |= {f"{field}/{name}": value for name, value in getattr(examples, field).items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read(path: Path) -> Examples:
    """Reads the file.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
        if arrays["version"] != VERSION:
            raise ValueError(f"version {arrays['version']}, not {VERSION}")
        named = {
            field: {
                key.removeprefix(f"{field}/"): value
                for key, value in arrays.items()
                if key.startswith(f"{field}/")
            }
            for field in NAMED
        }
        return Examples(**{name: arrays[name] for name in ARRAYS}, **named)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}; remove it and evaluate again") from error

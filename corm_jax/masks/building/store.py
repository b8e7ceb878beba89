"""What an encoder saw in each image of a split, on disk in shards that are written once.

store.json                 {"schema", "images", "shard_images", "channels", "grid": [h, w],
                            "candidates", "encoder": its fingerprint, "file_names": a hash}
file_names.npy             bytes [N]
shard-00000/               the first `shard_images` images, and so on; n of them:
  label.npy                int32 [n]
  predicted.npy            int32 [n]
  valid.npy                bool [n]: whether the image could be decoded
  activations.npy          float16 [n, C]
  candidates.npy           uint16 [n, k]: channels whose maps are stored
  maps.npy                 uint8 [n, k, h, w]: their neural activation maps, times 255
more-00000/                maps of selected features that were no candidates of their image:
  images.npy               int64 [m]: index of the image in the split
  features.npy             int32 [m]
  maps.npy                 uint8 [m, h, w]
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from corm_jax.errors import UserError
from corm_jax.files import read_json, replacing, replacing_directory, reporting, write_json
from corm_jax.masks.records import load_array

SCHEMA = "corm_jax.features/1"
SHARD_FILES = ("label", "predicted", "valid", "activations", "candidates", "maps")
Arrays = dict[str, np.ndarray]


def describe(
    file_names: np.ndarray,
    *,
    encoder: str,
    shard_images: int,
    channels: int,
    grid: tuple[int, int],
    candidates: int,
) -> dict[str, Any]:
    """Returns the content of store.json; see the module's docstring."""
    return {
        "schema": SCHEMA,
        "images": len(file_names),
        "shard_images": shard_images,
        "channels": channels,
        "grid": list(grid),
        "candidates": candidates,
        "encoder": encoder,
        "file_names": hashlib.sha256(b"\n".join(file_names.tolist())).hexdigest(),
    }


def create_store(directory: Path, header: dict[str, Any], file_names: np.ndarray) -> None:
    """Creates an empty store, or checks that the one that is there is the same one.

    Raises:
      UserError: if it is of another encoder, of other images, or cut in another way.
    """
    path = directory / "store.json"
    if path.exists():
        before = read_json(path)
        changes = [key for key in header if before.get(key) != header[key]]
        if changes:
            raise UserError(
                f"{directory} was made with another {', '.join(changes)}; choose another "
                "--workdir, or remove it to start over"
            )
        return
    with replacing(directory / "file_names.npy") as temporary:
        np.save(temporary, file_names)
    write_json(path, header)


class FeatureStore:
    """The finished shards of a split, memory-mapped.

    Attributes:
      file_names: bytes [N].
      label: int32 [N].
      predicted: int32 [N], the encoder's class.
      valid: bool [N], False where the image could not be decoded; what else is stored of it has no
        meaning.
      channels: number of features C.
      grid: (h, w) of the maps.
    """

    def __init__(self, directory: Path) -> None:
        """Opens a store.

        Raises:
          UserError: if there is none, or shards are missing or damaged; names them.
        """
        self.directory = directory
        header = read_header(directory)
        self._shard_images: int = header["shard_images"]
        self.channels, self.grid = header["channels"], tuple(header["grid"])
        self._candidates = header["candidates"]
        count = header["images"]
        self.file_names = load_array(directory / "file_names.npy", (count,), np.bytes_)
        self._shards = [self._open_shard(number, count) for number in range(shards(header))]
        self.label, self.predicted, self.valid = (
            np.concatenate([shard[key] for shard in self._shards])
            for key in ("label", "predicted", "valid")
        )
        self._more = self._open_more()

    def __len__(self) -> int:
        return len(self.label)

    @property
    def encoded_again(self) -> int:
        """The number of images that were encoded again for maps that were no candidates."""
        return sum(len(np.unique(keys // self.channels)) for keys, _ in self._more)

    def activations(self, images: np.ndarray) -> np.ndarray:
        """Returns float16 [n, C]: the activations of images.

        Args:
          images: int [n], indices in the split.
        """
        rows = np.empty((len(images), self.channels), np.float16)
        for shard, chosen, places in self._by_shard(images):
            rows[chosen] = shard["activations"][places]
        return rows

    def shard_activations(self) -> list[np.ndarray]:
        """Returns the activations of the shards, float16 [n, C] each, memory-mapped."""
        return [shard["activations"] for shard in self._shards]

    def maps(self, images: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Returns uint8 [n, h, w]: the neural activation map of a feature on each image, times 255.

        Args:
          images: int [n], indices in the split.
          features: int [n], the channel of each.

        Raises:
          UserError: if one is not stored.
        """
        maps, stored = self._find(images, features)
        if not stored.all():
            place = int(np.argmin(stored))
            raise UserError(
                f"{self.directory} holds no map of feature {features[place]} on image "
                f"{images[place]}; run the same build again"
            )
        return maps

    def has_map(self, images: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Returns bool [n]: whether the map of a feature on an image is stored."""
        return self._find(images, features)[1]

    def _find(self, images: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = np.zeros((len(images), *self.grid), np.uint8)
        stored = np.zeros(len(images), bool)
        for shard, chosen, places in self._by_shard(images):
            matches = shard["candidates"][places] == features[chosen][:, None]
            found = matches.any(axis=1)
            maps[chosen[found]] = shard["maps"][places[found], matches.argmax(axis=1)[found]]
            stored[chosen] = found
        keys = self._key(images, features)
        for known, more in self._more:
            places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            found = known[places] == keys
            maps[found], stored[found] = more[places[found]], True
        return maps, stored

    def _by_shard(self, images: np.ndarray) -> list[tuple[Arrays, np.ndarray, np.ndarray]]:
        """Returns (shard, which of `images` it holds, their places in it) for those concerned."""
        numbers, places = np.divmod(images, self._shard_images)
        parts = [(number, np.flatnonzero(numbers == number)) for number in np.unique(numbers)]
        return [(self._shards[number], chosen, places[chosen]) for number, chosen in parts]

    def _open_shard(self, number: int, count: int) -> Arrays:
        size = min(self._shard_images, count - number * self._shard_images)
        path, k = shard_path(self.directory, number), self._candidates
        if not path.is_dir():
            raise UserError(f"{path} is missing; run the same build again, it makes what is left")
        shapes = {
            "label": ((size,), np.int32),
            "predicted": ((size,), np.int32),
            "valid": ((size,), np.bool_),
            "activations": ((size, self.channels), np.float16),
            "candidates": ((size, k), np.uint16),
            "maps": ((size, k, *self.grid), np.uint8),
        }
        return {name: load_array(path / f"{name}.npy", *shapes[name]) for name in SHARD_FILES}

    def _open_more(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns (sorted keys [m], maps [m, h, w]) of each directory of further maps."""
        found = []
        for path in sorted(self.directory.glob("more-*")):
            images, features = (np.load(path / f"{name}.npy") for name in ("images", "features"))
            maps = load_array(path / "maps.npy", (len(images), *self.grid), np.uint8)
            found.append((self._key(images, features), maps))
        return found

    def _key(self, images: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Returns int64 [n]: one number for each pair, in the order of (image, feature)."""
        return images.astype(np.int64) * self.channels + features


def read_header(directory: Path) -> dict[str, Any]:
    """Returns the content of store.json.

    Raises:
      UserError: if there is none, or it does not follow the schema.
    """
    path = directory / "store.json"
    if not path.is_file():
        raise UserError(
            f"{directory} holds no features; make them: python -m corm_jax.masks build "
            f"--config=configs/masks.py --workdir={directory.parent.parent}"
        )
    header = read_json(path)
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise UserError(f"{path} does not follow {SCHEMA}; remove {directory} and build again")
    return header


def shards(header: dict[str, Any]) -> int:
    """Returns the number of shards of a store."""
    return -(-header["images"] // header["shard_images"])


def shard_path(directory: Path, number: int) -> Path:
    """Returns the directory of a shard."""
    return directory / f"shard-{number:05d}"


def next_more(directory: Path) -> Path:
    """Returns where the next directory of further maps goes."""
    return directory / f"more-{len(list(directory.glob('more-*'))):05d}"


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Writes arrays as a directory of .npy files, whole or not at all."""
    with replacing_directory(path) as temporary, reporting(path):
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)

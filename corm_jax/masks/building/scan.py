"""One pass of an encoder over the images of a split, into a `FeatureStore`.

Every host takes shards of its own and works on its own devices alone, so that hosts need not wait
for each other. Batches never cross the border of a shard: whatever was done before a run was
killed, each image meets the very same batch, and its results are the same to the last bit.
"""

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax.data import pipeline, preprocess
from corm_jax.data.order import Selection
from corm_jax.masks.building import store
from corm_jax.masks.building.encoder import Encoder
from corm_jax.masks.building.splits import unmasked
from corm_jax.masks.building.steps import Arrays, make_map_step, make_scan_step, outputs


@dataclass(frozen=True)
class Part:
    """Images of one batch: `images` int [n] of the shard `shard`."""

    shard: int
    images: np.ndarray


def loaded(
    encoder: Encoder, images: pipeline.ImageSource, config: ConfigDict, parts: Sequence[Part]
) -> Iterator[Arrays]:
    """Yields a batch for each part, as the encoder sees it.

    Each is a dict of `image` uint8 [B, S, S, 3], `label` int32 [B] and `weight` float32 [B], 0
    for padding and for an image that could not be decoded.
    """
    size = config.scan.batch_size

    def select(number: int) -> Selection:
        indices = parts[number].images
        positions = np.arange(size)
        padded = indices[np.minimum(positions, len(indices) - 1)]
        return Selection(padded, positions, (positions < len(indices)).astype(np.float32))

    split = unmasked(images)
    loader = pipeline.Loader(
        split=split,
        select=select,
        operations=preprocess.evaluation(
            split.masks, image_size=encoder.image_size, share=encoder.center_crop_share
        ),
        bad_images=config.data.bad_images,
    )
    for batch in loader.batches(0, len(parts)):
        yield {key: batch[key] for key in ("image", "label", "weight")}


class Scanner:
    """Runs one encoder over the images of splits; what it compiles serves all of them."""

    def __init__(self, encoder: Encoder, config: ConfigDict, mesh: Mesh) -> None:
        """Prepares a scan.

        Args:
          encoder: with its variables on `mesh`.
          config: of the build.
          mesh: this host's devices.
        """
        self._encoder, self._config, self._mesh = encoder, config, mesh
        self._scan_step = make_scan_step(encoder, config.scan.candidates)
        self._map_step = make_map_step(encoder)
        self._fingerprint = encoder.fingerprint()
        self._channels, self._grid = _map_shape(encoder)

    def scan(
        self, directory: Path, images: pipeline.ImageSource, *, host: tuple[int, int] = (0, 1)
    ) -> int:
        """Encodes the images of the shards that are not there yet.

        Args:
          directory: of the store; created if there is none.
          images: of the split.
          host: (index, count) of this host; it takes every count-th shard.

        Returns:
          the number of images encoded.

        Raises:
          UserError: if the store is of something else, for an image that cannot be decoded (if the
            config says so), or a full disk.
        """
        store.create_store(directory, self._header(images), images.file_names)
        header = store.read_header(directory)
        own = range(host[0], store.shards(header), host[1])
        missing = [number for number in own if not store.shard_path(directory, number).is_dir()]
        for number in missing:
            _remove_leftovers(directory, store.shard_path(directory, number).name)
        shards = [_images_of(header, number) for number in missing]
        size = self._config.scan.batch_size
        parts = [
            Part(number, indices[begin : begin + size])
            for number, indices in zip(missing, shards, strict=True)
            for begin in range(0, len(indices), size)
        ]
        total, count = sum(len(_images_of(header, n)) for n in own), sum(map(len, shards))
        with tqdm(
            total=total,
            initial=total - count,
            desc=f"encoding {directory.name}",
            unit="image",
            disable=None,
        ) as bar:
            self._write_shards(directory, images, parts, bar)
        return count

    def scan_more(self, directory: Path, images: pipeline.ImageSource, pairs: np.ndarray) -> int:
        """Encodes images again whose maps of selected features were not kept.

        Args:
          directory: of the store, complete.
          images: of the split.
          pairs: int64 [n, 2], image and feature, sorted by image.

        Returns:
          the number of images encoded.
        """
        _remove_leftovers(directory, "more")
        if not len(pairs):
            return 0
        numbers, begins, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        owners = np.repeat(np.arange(len(numbers)), counts)
        places = np.arange(len(pairs)) - np.repeat(begins, counts)
        size = self._config.scan.batch_size
        batches = -(-len(numbers) // size)
        features = np.zeros((batches * size, counts.max()), np.int32)  # rows beyond are padding
        features[owners, places] = pairs[:, 1]
        parts = [Part(0, numbers[n * size : (n + 1) * size]) for n in range(batches)]

        def inputs() -> Iterator[Arrays]:
            for number, batch in enumerate(self._loaded(images, parts)):
                wanted = features[number * size : (number + 1) * size]
                yield {"image": batch["image"], "features": wanted}

        results = tqdm(
            outputs(self._map_step, inputs(), self._mesh),
            total=batches,
            desc=f"encoding {directory.name} again",
            unit="batch",
            disable=None,
        )
        maps = np.concatenate([result["maps"] for result in results])
        arrays = {
            "images": pairs[:, 0],
            "features": pairs[:, 1].astype(np.int32),
            "maps": maps[owners, places],
        }
        store.write_arrays(store.next_more(directory), arrays)
        return len(numbers)

    def _loaded(self, images: pipeline.ImageSource, parts: Sequence[Part]) -> Iterator[Arrays]:
        return loaded(self._encoder, images, self._config, parts)

    def _header(self, images: pipeline.ImageSource) -> dict[str, Any]:
        settings = self._config.scan
        return store.describe(
            images.file_names,
            encoder=self._fingerprint,
            shard_images=settings.shard_batches * settings.batch_size,
            channels=self._channels,
            grid=self._grid,
            candidates=min(settings.candidates or self._channels, self._channels),
        )

    def _write_shards(
        self, directory: Path, images: pipeline.ImageSource, parts: Sequence[Part], bar: tqdm
    ) -> None:
        """Encodes all parts and writes a shard, in a thread, as soon as its last one is there."""
        waiting: deque[Arrays] = deque()  # what is known of the batches that the device works on

        def inputs() -> Iterator[Arrays]:
            for batch in self._loaded(images, parts):
                waiting.append({"label": batch["label"], "valid": batch["weight"] > 0})
                yield {key: batch[key] for key in ("image", "label")}

        rows: list[Arrays] = []
        last = {part.shard: number for number, part in enumerate(parts)}
        with ThreadPoolExecutor(1) as pool:
            writing: Future | None = None
            for number, result in enumerate(outputs(self._scan_step, inputs(), self._mesh)):
                part = parts[number]
                result |= waiting.popleft()
                rows.append({key: array[: len(part.images)] for key, array in result.items()})
                bar.update(len(part.images))
                if last[part.shard] == number:
                    shard = {key: np.concatenate([row[key] for row in rows]) for key in result}
                    rows.clear()
                    if writing is not None:
                        writing.result()
                    path = store.shard_path(directory, part.shard)
                    writing = pool.submit(store.write_arrays, path, shard)
            if writing is not None:
                writing.result()


def _map_shape(encoder: Encoder) -> tuple[int, tuple[int, int]]:
    """Returns (number of channels, (h, w)) of an encoder's maps."""
    shape = (1, encoder.image_size, encoder.image_size, 3)
    pixels = jax.ShapeDtypeStruct(shape, jnp.float32)
    _, _, maps = jax.eval_shape(encoder.encode, encoder.variables, pixels)
    return maps.shape[3], maps.shape[1:3]


def _images_of(header: dict[str, Any], number: int) -> np.ndarray:
    size = header["shard_images"]
    return np.arange(number * size, min((number + 1) * size, header["images"]))


def _remove_leftovers(directory: Path, name: str) -> None:
    """Removes what a killed run had not finished."""
    for left in directory.glob(f".{name}-*"):
        shutil.rmtree(left)

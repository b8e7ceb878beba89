"""One pass of an encoder over the images of a split, into a `FeatureStore`.

Every host takes shards of its own and works on its own devices alone, so that hosts need not wait
for each other. Batches never cross the border of a shard: whatever was done before a run was
killed, each image meets the very same batch, and its results are the same to the last bit.
"""

import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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
from corm_jax.masks.building.steps import Arrays, Step, make_map_step, make_scan_step, outputs


@dataclass(frozen=True)
class Part:
    """Images of one batch: `images` int [n] of the shard `shard`."""

    shard: int
    images: np.ndarray


def create(
    directory: Path, encoder: Encoder, images: pipeline.ImageSource, config: ConfigDict
) -> None:
    """Creates the store of a split; see `corm_jax.masks.building.store.create_store`."""
    size = encoder.image_size
    shape = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    _, activations, maps = jax.eval_shape(encoder.encode, encoder.variables, shape)
    channels = activations.shape[1]
    header = store.describe(
        images.file_names,
        encoder=encoder.fingerprint(),
        shard_images=config.scan.shard_batches * config.scan.batch_size,
        channels=channels,
        grid=maps.shape[1:3],
        candidates=min(config.scan.candidates or channels, channels),
    )
    store.create_store(directory, header, images.file_names)


def scan(
    directory: Path,
    encoder: Encoder,
    images: pipeline.ImageSource,
    config: ConfigDict,
    mesh: Mesh,
    *,
    host: tuple[int, int] = (0, 1),
) -> int:
    """Encodes the images of the shards that are not there yet.

    Args:
      directory: of the store, created.
      encoder: with its variables on `mesh`.
      images: of the split.
      config: of the build.
      mesh: this host's devices.
      host: (index, count) of this host; it takes every count-th shard.

    Returns:
      the number of images encoded.

    Raises:
      UserError: for an image that cannot be decoded (if the config says so), or a full disk.
    """
    header = store.read_header(directory)
    own = range(host[0], store.shards(header), host[1])
    missing = [number for number in own if not store.shard_path(directory, number).is_dir()]
    for number in missing:  # what a killed run left
        path = store.shard_path(directory, number)
        for left in directory.glob(f".{path.name}-*"):
            shutil.rmtree(left)
    shards = [_images_of(header, number) for number in missing]
    parts = [
        Part(number, indices[begin : begin + config.scan.batch_size])
        for number, indices in zip(missing, shards, strict=True)
        for begin in range(0, len(indices), config.scan.batch_size)
    ]
    step = make_scan_step(encoder, header["candidates"] if config.scan.candidates else 0)
    count = sum(map(len, shards))
    done = sum(len(_images_of(header, number)) for number in own) - count
    with tqdm(
        total=done + count,
        initial=done,
        desc=f"encoding {directory.name}",
        unit="image",
        disable=None,
    ) as bar:
        _write_shards(directory, parts, loaded(encoder, images, config, parts), step, mesh, bar)
    return count


def loaded(
    encoder: Encoder, images: pipeline.ImageSource, config: ConfigDict, parts: Sequence[Part]
) -> Iterator[Arrays]:
    """Yields a batch for each part, as the encoder sees it.

    Each is a dict of `image` uint8 [B, S, S, 3], `label` int32 [B] and `weight` float32 [B], 0 for
    padding and for an image that could not be decoded.
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


def _images_of(header: dict, number: int) -> np.ndarray:
    size = header["shard_images"]
    return np.arange(number * size, min((number + 1) * size, header["images"]))


def _write_shards(
    directory: Path,
    parts: Sequence[Part],
    batches: Iterable[Arrays],
    step: Step,
    mesh: Mesh,
    bar: tqdm,
) -> None:
    """Encodes batches and writes a shard as soon as its last one is there."""
    weights, labels = deque(), deque()

    def inputs() -> Iterator[Arrays]:
        for batch in batches:
            weights.append(batch["weight"])
            labels.append(batch["label"])
            yield {key: batch[key] for key in ("image", "label")}

    rows: list[Arrays] = []
    ends = {part.shard: number for number, part in enumerate(parts)}
    with ThreadPoolExecutor(1) as pool:
        writing: Future | None = None
        for number, result in enumerate(outputs(step, inputs(), mesh)):
            part = parts[number]
            result |= {"label": labels.popleft(), "valid": weights.popleft() > 0}
            rows.append({key: array[: len(part.images)] for key, array in result.items()})
            bar.update(len(part.images))
            if ends[part.shard] == number:
                shard = {key: np.concatenate([row[key] for row in rows]) for key in result}
                rows.clear()
                if writing is not None:
                    writing.result()
                path = store.shard_path(directory, part.shard)
                writing = pool.submit(store.write_arrays, path, shard)
        if writing is not None:
            writing.result()


def scan_more(
    directory: Path,
    encoder: Encoder,
    images: pipeline.ImageSource,
    config: ConfigDict,
    mesh: Mesh,
    pairs: np.ndarray,
) -> int:
    """Encodes images again whose maps of selected features were not kept.

    Args:
      directory: of the store, complete.
      encoder: with its variables on `mesh`.
      images: of the split.
      config: of the build.
      mesh: this host's devices.
      pairs: int64 [n, 2], image and feature, sorted by image.

    Returns:
      the number of images encoded.
    """
    for left in directory.glob(".more-*"):
        shutil.rmtree(left)
    if not len(pairs):
        return 0
    numbers, begins, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    features = np.zeros((len(numbers), counts.max()), np.int32)
    places = np.arange(len(pairs)) - np.repeat(begins, counts)
    owners = np.repeat(np.arange(len(numbers)), counts)
    features[owners, places] = pairs[:, 1]
    size = config.scan.batch_size
    parts = [Part(0, numbers[begin : begin + size]) for begin in range(0, len(numbers), size)]

    def inputs() -> Iterator[Arrays]:
        batches = loaded(encoder, images, config, parts)
        for number, batch in enumerate(batches):
            wanted = np.zeros((size, features.shape[1]), np.int32)
            chunk = features[number * size : (number + 1) * size]
            wanted[: len(chunk)] = chunk
            yield {"image": batch["image"], "features": wanted}

    results = tqdm(
        outputs(make_map_step(encoder), inputs(), mesh),
        total=len(parts),
        desc=f"encoding {directory.name} again",
        unit="batch",
        disable=None,
    )
    maps = np.concatenate([result["maps"] for result in results])
    number = len(list(directory.glob("more-*")))
    arrays = {"images": pairs[:, 0], "features": pairs[:, 1].astype(np.int32)}
    arrays["maps"] = maps[owners, places]
    store.write_arrays(directory / f"more-{number:05d}", arrays)
    return len(numbers)

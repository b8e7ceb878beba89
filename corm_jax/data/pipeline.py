"""Batches of images joined with their masks, in an order that depends on seed and step alone.

Every example is found by its index, so that a run resumes at any step without replaying an epoch,
and each host reads its own part. Only encoded images are shuffled; they are decoded afterwards.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from corm_jax.data import preprocess
from corm_jax.data.geometry import check_aspect
from corm_jax.data.tf_import import tf
from corm_jax.errors import UserError
from corm_jax.masks.records import MaskSource

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

# Stands in for an image that cannot be decoded; its example has weight 0.
BLANK_IMAGE = tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy()
EVALUATION_SUBSET_SEED = 0


class ImageSource(Protocol):
    """Images that are found by their index.

    Attributes:
      file_names: bytes [N], unique.
      class_names: names of the classes, in the order of the labels.
    """

    file_names: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Returns the number of images."""

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns (encoded image, label) of each index."""

    def describe(self, index: int) -> str:
        """Returns where an image is, for messages."""


@dataclass(frozen=True)
class Split:
    """Images joined with their masks.

    Attributes:
      images: the images.
      masks: records that the masks are in.
      rows: int64 [N], each image's row in `masks`, -1 where there is none.
      has_mask: bool [N], whether there is a row and it has a core mask.
    """

    images: ImageSource
    masks: MaskSource
    rows: np.ndarray
    has_mask: np.ndarray


@dataclass(frozen=True)
class Selection:
    """The examples of one batch.

    Attributes:
      indices: int64 [B], which images.
      positions: int64 [B], the place of each in the endless sequence of epochs.
      weights: float32 [B], 0 for padding.
    """

    indices: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


def training_order(count: int, *, seed: int, batch_size: int) -> Callable[[int], Selection]:
    """Returns step -> examples: every epoch another permutation, batches run across epochs."""
    permutations: dict[int, np.ndarray] = {}

    def permutation(epoch: int) -> np.ndarray:
        if epoch not in permutations:
            for old in [e for e in permutations if e < epoch - 1]:
                del permutations[old]
            permutations[epoch] = np.random.default_rng((seed, epoch)).permutation(count)
        return permutations[epoch]

    def select(step: int) -> Selection:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, offsets = np.divmod(positions, count)
        indices = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = permutation(int(epoch))[offsets[chosen]]
        return Selection(indices, positions, np.ones(batch_size, np.float32))

    return select


def evaluation_order(indices: np.ndarray, *, batch_size: int) -> Callable[[int], Selection]:
    """Returns step -> examples: each index once, the last batch padded with weight 0."""

    def select(step: int) -> Selection:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        weights = (positions < len(indices)).astype(np.float32)
        return Selection(indices[np.minimum(positions, len(indices) - 1)], positions, weights)

    return select


def subset(count: int, size: int) -> np.ndarray:
    """Returns `size` indices below `count`, the same ones every time; all of them if size is 0."""
    if not 0 < size < count:
        return np.arange(count)
    return np.random.default_rng(EVALUATION_SUBSET_SEED).permutation(count)[:size]


@dataclass
class Loader:
    """Loads batches of a split; see `batches`.

    Attributes:
      split: images and masks.
      select: step -> examples of the *global* batch.
      operations: preprocessing of one example, as `preprocess.training` or `.evaluation` list it.
      bad_images: "skip" gives an undecodable image weight 0 and counts it, "error" stops.
      shard: (index, count) of this host: it loads its slice of every global batch.
      skipped: where the images are that were skipped.
    """

    split: Split
    select: Callable[[int], Selection]
    operations: Sequence[preprocess.Operation]
    bad_images: str
    shard: tuple[int, int] = (0, 1)
    skipped: dict[int, str] = field(default_factory=dict)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yields this host's part of the batches of steps start <= step < stop.

        Each is a dict of numpy arrays: `image` uint8 [b, S, S, 3], `label` int32 [b], `id` uint32
        [b] (a hash of the file name), `weight` float32 [b], `has_mask` float32 [b], `mask_window`
        float32 [b, 4] and either `core_mask` uint8 [b, S, S] or `core_grid` uint8 [b, h, w].

        Raises:
          UserError: for an image that cannot be decoded (if `bad_images` says so), a mask that
            cannot, a mask of another aspect ratio, or a file that cannot be read; names it.
        """
        step = start
        while step < stop:
            failures: list[Exception] = []
            try:
                for batch in self._dataset(step, stop, failures).as_numpy_iterator():
                    yield batch
                    step += 1
            except tf.errors.OpError as error:
                if failures:
                    raise failures[0] from error
                if not self._find_bad_images(step):
                    raise

    def _local(self, step: int) -> Selection:
        chosen = self.select(step)
        index, count = self.shard
        size = len(chosen.indices) // count
        part = slice(index * size, (index + 1) * size)
        return Selection(chosen.indices[part], chosen.positions[part], chosen.weights[part])

    def _raw(self, step: int) -> Batch:
        """Reads the encoded examples of a step."""
        chosen = self._local(step)
        images, masks = self.split.images, self.split.masks
        encoded = images.read(chosen.indices)
        rows = np.maximum(self.split.rows[chosen.indices], 0)
        usable = np.array([index not in self.skipped for index in chosen.indices])
        has_mask = self.split.has_mask[chosen.indices] & usable
        raw = {
            "image_bytes": np.array(
                [
                    data if ok else BLANK_IMAGE
                    for (data, _), ok in zip(encoded, usable, strict=True)
                ],
                object,
            ),
            "label": np.array([label for _, label in encoded], np.int32),
            "id": np.array([_identity(images.file_names[i]) for i in chosen.indices], np.uint32),
            "position": chosen.positions,
            "weight": chosen.weights * usable,
            "has_mask": has_mask.astype(np.float32),
            "mask_frame": masks.boxes(rows),
        }
        if masks.encoding == "png":
            raw["mask_bytes"] = np.array(
                [
                    masks.png("core", row) if has else b""
                    for row, has in zip(rows, has_mask, strict=True)
                ],
                object,
            )
        else:
            raw["core_grid"] = masks.grids("core", rows) * has_mask[:, None, None]
        return raw

    def _dataset(self, start: int, stop: int, failures: list[Exception]) -> tf.data.Dataset:
        def generate() -> Iterator[Batch]:
            try:
                for step in range(start, stop):
                    yield self._raw(step)
            except Exception as error:
                failures.append(error)
                raise

        example = self._raw(start)
        size = len(example["label"])
        signature = {
            key: tf.TensorSpec(
                value.shape, tf.string if value.dtype == object else tf.as_dtype(value.dtype)
            )
            for key, value in example.items()
        }
        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
        dataset = dataset.prefetch(2).unbatch()
        dataset = dataset.map(
            preprocess.compose(self.operations), num_parallel_calls=tf.data.AUTOTUNE
        )
        dataset = dataset.batch(size, drop_remainder=True).prefetch(2)
        options = tf.data.Options()
        options.deterministic = True
        return dataset.with_options(options)

    def _find_bad_images(self, step: int) -> bool:
        """Looks for the examples of a step that cannot be decoded; returns whether it found any."""
        chosen, raw, operation = (
            self._local(step),
            self._raw(step),
            preprocess.compose(self.operations),
        )
        found = False
        for place, index in enumerate(chosen.indices):
            index = int(index)
            if index in self.skipped:
                continue
            example = {key: tf.constant(value[place]) for key, value in raw.items()}
            try:
                operation(example)
            except tf.errors.InvalidArgumentError as error:
                self._refuse_bad_mask(index, example)
                where = self.split.images.describe(index)
                if self.bad_images == "error":
                    raise UserError(
                        f"{where} cannot be decoded (truncated or not a JPEG or PNG); replace it, "
                        "or skip such images with --config.data.bad_images=skip"
                    ) from error
                logger.warning("skipping %s: it cannot be decoded", where)
                self.skipped[index] = where
                found = True
        return found

    def _refuse_bad_mask(self, index: int, example: dict[str, Any]) -> None:
        """Raises UserError if the example's mask is what cannot be decoded or does not fit."""
        if not example.get("mask_bytes"):
            return
        masks, row = self.split.masks, int(self.split.rows[index])
        try:
            mask = tf.io.decode_png(example["mask_bytes"], channels=1)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"mask {masks.describe(row)} is not a readable PNG file") from error
        try:
            image = tf.io.decode_image(example["image_bytes"], channels=3)
        except tf.errors.InvalidArgumentError:
            return  # the image is what is bad
        frame = example["mask_frame"].numpy()
        height, width = image.shape[0], image.shape[1]
        if masks.frame["type"] == "center_crop":
            height = width = min(height, width)
        check_aspect(
            (round(height * (frame[2] - frame[0])), round(width * (frame[3] - frame[1]))),
            (mask.shape[0], mask.shape[1]),
            f"mask {masks.describe(row)}",
            f"its frame in image {self.split.images.describe(index)}",
        )


def _identity(file_name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(file_name, digest_size=4).digest(), "little")

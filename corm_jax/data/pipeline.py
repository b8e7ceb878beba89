"""Batches of images joined with their masks, in an order that depends on seed and step alone.

Every example is found by its index, so that a run resumes at any step without replaying an epoch,
and each host reads its own part. Only encoded images are shuffled; they are decoded afterwards.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from corm_jax.data import preprocess
from corm_jax.data.geometry import check_aspect
from corm_jax.data.order import Selection
from corm_jax.data.tf_import import tf
from corm_jax.errors import UserError
from corm_jax.masks.records import MaskSource

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

# Stands in for an image that cannot be decoded; its example has weight 0.
BLANK_IMAGE = tf.io.encode_jpeg(np.zeros((8, 8, 3), np.uint8)).numpy()


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

    def labels(self) -> np.ndarray:
        """Returns the label of every image, int32 [N]."""

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


@dataclass
class Loader:
    """Loads batches of a split; see `batches`.

    Attributes:
      split: images and masks.
      select: step -> examples of the *global* batch.
      operations: preprocessing of one example, as `preprocess.training` or `.evaluation` list it.
      bad_images: "skip" gives an undecodable image weight 0 and counts it, "error" stops.
      shard: (index, count) of this host: it loads its slice of every global batch.
      skipped: where the images are that were skipped at least once. (A random crop may spare the
        damaged part of an image, so each example is judged on its own.)
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
        float32 [b, 4] and either `core_grid` uint8 [b, h, w], masks in their own frames, or
        `core_mask` uint8 [b, S, S], masks resampled to the crops.

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
        size, rest = divmod(len(chosen.indices), count)
        if rest:
            raise ValueError(f"{count} hosts cannot share a batch of {len(chosen.indices)} evenly")
        part = slice(index * size, (index + 1) * size)
        return Selection(chosen.indices[part], chosen.positions[part], chosen.weights[part])

    def _signature(self, size: int) -> dict[str, tf.TensorSpec]:
        """Returns what `_raw` returns for `size` examples."""
        masks = self.split.masks
        fields = {
            "image_bytes": ((), tf.string),
            "label": ((), tf.int32),
            "id": ((), tf.uint32),
            "position": ((), tf.int64),
            "weight": ((), tf.float32),
            "has_mask": ((), tf.float32),
            "mask_frame": ((4,), tf.float32),
        }
        if masks.encoding == "png":
            fields["mask_bytes"] = ((), tf.string)
        else:
            fields["core_grid"] = (masks.size, tf.uint8)
        return {key: tf.TensorSpec((size, *shape), dtype) for key, (shape, dtype) in fields.items()}

    def _raw(self, step: int) -> Batch:
        """Reads the encoded examples of a step."""
        chosen = self._local(step)
        images, masks = self.split.images, self.split.masks
        encoded = images.read(chosen.indices)
        rows = np.maximum(self.split.rows[chosen.indices], 0)
        has_mask = self.split.has_mask[chosen.indices]
        raw = {
            "image_bytes": np.array([data for data, _ in encoded], object),
            "label": np.array([label for _, label in encoded], np.int32),
            "id": np.array([identity(images.file_names[i]) for i in chosen.indices], np.uint32),
            "position": chosen.positions,
            "weight": chosen.weights.copy(),
            "has_mask": has_mask.astype(np.float32),
            "mask_frame": masks.boxes(rows),
        }
        if masks.encoding == "png":
            files = [
                masks.png("core", row) if has else b""
                for row, has in zip(rows, has_mask, strict=True)
            ]
            raw["mask_bytes"] = np.array(files, object)
        else:
            raw["core_grid"] = masks.grids("core", rows) * has_mask[:, None, None]
        for place, index in enumerate(chosen.indices):
            if int(index) in self.skipped and self._try(raw, place)[1] is not None:
                raw["image_bytes"][place] = BLANK_IMAGE
                raw["weight"][place] = raw["has_mask"][place] = 0
                if "mask_bytes" in raw:
                    raw["mask_bytes"][place] = b""
                else:
                    raw["core_grid"][place] = 0
        return raw

    def _dataset(self, start: int, stop: int, failures: list[Exception]) -> tf.data.Dataset:
        def generate() -> Iterator[Batch]:
            try:
                for step in range(start, stop):
                    yield self._raw(step)
            except Exception as error:
                failures.append(error)
                raise

        size = len(self._local(start).indices)
        dataset = tf.data.Dataset.from_generator(generate, output_signature=self._signature(size))
        dataset = dataset.prefetch(2).unbatch()
        # One image a core from the first batch on; TensorFlow's tuning would take its time.
        dataset = dataset.map(
            preprocess.compose(self.operations), num_parallel_calls=os.cpu_count() or 1
        )
        dataset = dataset.batch(size, drop_remainder=True).prefetch(2)
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        return dataset.with_options(options)

    def _try(
        self, raw: Batch, place: int
    ) -> tuple[preprocess.Example, tf.errors.InvalidArgumentError | None]:
        """Preprocesses one example eagerly, as far as it goes; returns it and what failed."""
        example = {key: tf.constant(value[place]) for key, value in raw.items()}
        try:
            for operation in self.operations:
                example = operation(example)
        except tf.errors.InvalidArgumentError as error:
            return example, error
        return example, None

    def _find_bad_images(self, step: int) -> bool:
        """Looks for the examples of a step that cannot be decoded; returns whether it found any."""
        raw, found = self._raw(step), False
        for place, index in enumerate(map(int, self._local(step).indices)):
            example, error = self._try(raw, place)
            if error is None:
                continue
            if "image" in example:
                self._refuse_mask(index, example)
                continue
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

    def _refuse_mask(self, index: int, example: preprocess.Example) -> None:
        """Raises UserError for an example whose image is fine but whose mask failed."""
        what = f"mask {self.split.masks.describe(int(self.split.rows[index]))}"
        try:
            mask = tf.io.decode_png(example["mask_bytes"], channels=1)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"{what} is not a readable PNG file") from error
        expected = self.split.masks.size
        if expected not in (None, tuple(mask.shape[:2])):
            raise UserError(
                f"{what} is {mask.shape[1]}x{mask.shape[0]} pixels, masks.json says "
                f"{expected[1]}x{expected[0]}; write the records again"
            )
        frame = example["frame_size"].numpy().tolist()
        image = self.split.images.describe(index)
        check_aspect(frame, mask.shape[:2], what, f"its frame in image {image}")


def identity(file_name: bytes) -> int:
    """Returns an image's `id` in batches, below 2^32."""
    return int.from_bytes(hashlib.blake2b(file_name, digest_size=4).digest(), "little")

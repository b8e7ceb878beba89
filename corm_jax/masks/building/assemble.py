"""From neural activation maps of selected features to mask records."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from corm_jax.masks.building.selection import Feature
from corm_jax.masks.building.store import FeatureStore, write_arrays
from corm_jax.masks.records import KINDS
from corm_jax.masks.writer import MaskWriter

CHUNK = 4096  # images whose maps are in memory at once
Kinds = Mapping[tuple[int, int], tuple[float, float]]


@dataclass(frozen=True)
class Plan:
    """Which maps make the masks of a split: n pairs of an image and a feature, by image.

    Attributes:
      images: int64 [n], indices in the split.
      features: int64 [n], channels.
      weights: float32 [n, 2], of the pair's map in the core and in the spurious mask.
    """

    images: np.ndarray
    features: np.ndarray
    weights: np.ndarray

    def pairs(self) -> np.ndarray:
        """Returns int64 [n, 2]: image and feature."""
        return np.stack([self.images, self.features], axis=1)


def plan(store: FeatureStore, features: Sequence[Feature], kinds: Kinds, *, top_k: int) -> Plan:
    """Chooses the images of each (class, feature): those of the class that activate it most.

    Args:
      store: of the split.
      features: as `selection.select` returns them.
      kinds: (class, channel) -> weights of the feature in (core, spurious) masks.
      top_k: how many images; 0 for all of the class. Of equal activations the first images.
    """
    chosen: list[tuple[np.ndarray, int, tuple[float, float]]] = []
    for index in dict.fromkeys(feature.class_index for feature in features):
        images = np.flatnonzero((store.label == index) & store.valid)
        activations = store.activations(images).astype(np.float32)
        for feature in features:
            if feature.class_index == index:
                order = np.argsort(-activations[:, feature.feature], kind="stable")
                top = images[order[: top_k or None]]
                chosen.append((top, feature.feature, kinds[index, feature.feature]))
    images = np.concatenate([top for top, _, _ in chosen])
    counts = [len(top) for top, _, _ in chosen]
    channels = np.repeat(np.array([channel for _, channel, _ in chosen], np.int64), counts)
    weights = np.repeat(np.array([weight for _, _, weight in chosen], np.float32), counts, axis=0)
    order = np.lexsort((channels, images))
    return Plan(images[order], channels[order], weights[order])


def frame_of(image_size: int, center_crop_share: float) -> dict[str, Any]:
    """Returns the frame of masks of the encoder's input.

    Args:
      image_size: of the encoder.
      center_crop_share: of the encoder; what whole numbers cannot say exactly is rounded to a
        fraction of a denominator up to 1000.
    """
    share = Fraction(center_crop_share).limit_denominator(1000)
    scale = max(1, image_size // share.numerator)
    return {
        "type": "center_crop",
        "resize": scale * share.denominator,
        "crop": scale * share.numerator,
    }


def write_records(
    path: Path,
    stores: Mapping[str, FeatureStore],
    plans: Mapping[str, Plan],
    *,
    frame: dict[str, Any],
    source: str,
    origin: dict[str, Any],
) -> None:
    """Writes the masks of splits as mask records.

    An image's core mask is the maximum over its features of map times weight, likewise its spurious
    mask; it has one where a weight is above 0. Rows are in the order of splits and images.

    Args:
      path: the directory to write.
      stores: split -> its store, of one grid.
      plans: split -> its plan.
      frame: of the masks.
      source: of the masks, for masks.json.
      origin: likewise.

    Raises:
      UserError: if the path exists, cannot be written, or a map is not stored.
    """
    grid = next(iter(stores.values())).grid
    total = sum(len(np.unique(plan.images)) for plan in plans.values())
    writer = MaskWriter(path, encoding="grid", grid=grid, frame=frame, source=source, origin=origin)
    with writer, tqdm(total=total, desc="writing masks", unit="image", disable=None) as bar:
        for split, store in stores.items():
            for images, masks, present in _masks(store, plans[split]):
                for row, name in enumerate(store.file_names[images].tolist()):
                    given = {kind: masks[row, k] for k, kind in enumerate(KINDS) if present[row, k]}
                    writer.add(os.fsdecode(name), **given)
                bar.update(len(images))


def _masks(store: FeatureStore, plan: Plan) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (images [m], masks uint8 [m, 2, h, w], present bool [m, 2]) of a split, in order."""
    images, begins = np.unique(plan.images, return_index=True)
    ends = np.append(begins[1:], len(plan.images))
    for first in range(0, len(images), CHUNK):
        chunk = slice(first, first + CHUNK)
        part = slice(begins[chunk][0], ends[chunk][-1])
        maps = store.maps(plan.images[part], plan.features[part])
        weighted = maps[:, None] * plan.weights[part][..., None, None]
        starts = begins[chunk] - begins[chunk][0]
        masks = np.maximum.reduceat(weighted, starts, axis=0)
        present = np.maximum.reduceat(plan.weights[part], starts, axis=0) > 0
        yield images[chunk], np.rint(masks).astype(np.uint8), present


def write_feature_maps(
    path: Path, stores: Mapping[str, FeatureStore], plans: Mapping[str, Plan]
) -> None:
    """Writes each feature's own map, for protocols that corrupt one feature at a time.

    Args:
      path: the directory to write: row.npy int64 [n], rows of the mask records that
        `write_records` writes; feature.npy int32 [n], channels; maps.npy uint8 [n, h, w].
      stores: split -> its store.
      plans: split -> its plan.
    """
    rows, features, maps, begin = [], [], [], 0
    for split, store in stores.items():
        pairs = plans[split]
        images, inverse = np.unique(pairs.images, return_inverse=True)
        rows.append(begin + inverse)
        begin += len(images)
        features.append(pairs.features.astype(np.int32))
        maps.append(store.maps(pairs.images, pairs.features))
    arrays = {"row": rows, "feature": features, "maps": maps}
    write_arrays(path, {name: np.concatenate(parts) for name, parts in arrays.items()})

"""Evaluation batches with the map of each annotated feature of an image's class."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax import distributed
from corm_jax.data import preprocess
from corm_jax.data.join import join
from corm_jax.data.pipeline import Loader, Split
from corm_jax.errors import UserError
from corm_jax.masks.building.feature_maps import FeatureMaps
from corm_jax.masks.checks import KINDS
from corm_jax.masks.records import whole_image

NO_KIND = -1


@dataclass(frozen=True)
class ClassFeatures:
    """The annotated features of each class, at most K, the most important first.

    Attributes:
      channel: int32 [C, K], of the encoder; 0 where a class has fewer features.
      kind: int32 [C, K], its place in `KINDS`; `NO_KIND` where a class has fewer.
      rank: int32 [C, K], of all features of the class, from 1 on.
    """

    channel: np.ndarray
    kind: np.ndarray
    rank: np.ndarray


@dataclass(frozen=True)
class StackedMaps:
    """A `MaskSource` whose masks are an image's maps of K features below one another.

    Attributes:
      file_names: bytes [N], of the split's images: their rows are their indices.
      place: int64 [N, K], where in `maps` the map of each feature of the image's class is, -1 where
        there is none.
      maps: uint8 [n, h, w].
      frame: of the maps.
    """

    file_names: np.ndarray
    place: np.ndarray
    maps: np.ndarray
    frame: dict[str, Any]
    encoding = "grid"

    @property
    def size(self) -> tuple[int, int]:
        """Returns (K h, w)."""
        _, height, width = self.maps.shape
        return self.place.shape[1] * height, width

    def has(self, kind: str) -> np.ndarray:
        """Returns bool [N]: which images have a map, of whatever kind."""
        del kind
        return (self.place >= 0).any(axis=1)

    def grids(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 [len(rows), K h, w]; zeros where there is no map."""
        del kind
        place = self.place[rows]
        maps = self.maps[np.maximum(place, 0)] * (place >= 0)[..., None, None]
        return maps.reshape(len(place), *self.size)

    def png(self, kind: str, row: int) -> bytes:
        """Never called: these masks are grids."""
        raise TypeError("these masks are grids")

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 [len(rows), 4]: the whole image."""
        return whole_image(len(rows))

    def describe(self, row: int) -> str:
        """Never called: a grid cannot be damaged."""
        raise TypeError(f"row {row} is a grid")


@dataclass(frozen=True)
class FeatureLoader:
    """Loads batches with the maps of single features.

    Attributes:
      images: loads the images, their stacked maps as core masks.
      features: of each class.
    """

    images: Loader
    features: ClassFeatures

    def batches(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yields batches as `Loader.batches` does, but without core masks.

        Instead `feature_grid` uint8 [b, K, h, w], zeros where there is no map; `feature` int32
        [b, K] and `feature_kind` int32 [b, K], the channel and kind of each (`ClassFeatures`).
        """
        count = self.features.kind.shape[1]
        for batch in self.images.batches(start, stop):
            label, stacked = batch["label"], batch.pop("core_grid")
            size, _, width = stacked.shape
            yield {
                **batch,
                "feature_grid": stacked.reshape(size, count, -1, width),
                "feature": self.features.channel[label],
                "feature_kind": self.features.kind[label],
            }

    def fingerprint(self) -> str:
        """Returns "sha256:" and the hash of all maps with their features, by the images' names."""
        digest, masks = hashlib.sha256(), self.images.split.masks
        file_names, labels = masks.file_names, self.images.split.images.labels()
        hidden = None if distributed.is_first() else True
        for image in tqdm(np.argsort(file_names), desc="maps", leave=False, disable=hidden):
            for slot in np.flatnonzero(masks.place[image] >= 0):
                channel = self.features.channel[labels[image], slot]
                kind = KINDS[self.features.kind[labels[image], slot]]
                digest.update(b"%s %d %s\n" % (file_names[image], channel, kind.encode()))
                digest.update(masks.maps[masks.place[image, slot]].tobytes())
        return f"sha256:{digest.hexdigest()}"


def with_features(config: ConfigDict, loader: Loader, built: FeatureMaps) -> FeatureLoader:
    """Gives each image the maps of its class's annotated features, in place of its core mask.

    Args:
      config: the run's config.
      loader: from `corm_jax.data.dataset.evaluation_loader`.
      built: by a build on images of these names, of any of its splits.

    Raises:
      UserError: if the classes are others, or no image of the split has a map of a feature that is
        annotated for its class.
    """
    split = loader.split
    features = class_features(built, split.images.class_names)
    place = _places(split, built, features)
    masks = StackedMaps(split.images.file_names, place, built.maps, built.frame)
    if not masks.has("core").any():
        raise UserError(
            f"{built.workdir} holds no feature map of an image of this split; evaluate on the "
            "images that it was built on (--split=train, or validation where its "
            "config.masks.validation is True)"
        )
    split = replace(split, masks=masks, rows=np.arange(len(place)), has_mask=masks.has("core"))
    operations = preprocess.evaluation(
        masks, image_size=config.data.image_size, share=config.data.center_crop_share
    )
    # A record of bad images of its own: each loader has to come upon an image's damage itself.
    images = replace(loader, split=split, operations=operations, skipped=dict(loader.skipped))
    return FeatureLoader(images, features)


def class_features(built: FeatureMaps, class_names: Sequence[str]) -> ClassFeatures:
    """Returns the annotated features of each class.

    Args:
      built: the build, whose classes may stand in another order.
      class_names: of the data, in the order of the labels.

    Raises:
      UserError: if no class of the data is one of the build's.
    """
    of_class: list[list[tuple[int, int, int]]] = [[] for _ in class_names]
    number = {name: label for label, name in enumerate(class_names)}
    for feature, kind in zip(built.features, built.kinds, strict=True):
        label = number.get(built.class_names[feature.class_index])
        if label is not None:
            of_class[label].append((feature.feature, KINDS.index(kind), feature.rank))
    if not any(of_class):
        raise UserError(
            f"the features of {built.workdir} are of other classes, such as "
            f"{built.class_names[0]!r}; the data has {class_names[0]!r}"
        )
    count = max(map(len, of_class))
    padded = [given + [(0, NO_KIND, 0)] * (count - len(given)) for given in of_class]
    return ClassFeatures(*np.moveaxis(np.array(padded, np.int32), -1, 0))


def _places(split: Split, built: FeatureMaps, features: ClassFeatures) -> np.ndarray:
    """Returns int64 [N, K], the map of each feature of each image's class, -1 without one."""
    labels, rows = split.images.labels(), join(split.images.file_names, built.file_names).rows
    images = np.flatnonzero(rows >= 0)
    begin, end = (np.searchsorted(built.row, rows[images], side) for side in ("left", "right"))
    # One element for each map of an image of the split.
    image = np.repeat(images, end - begin)
    within = np.arange(len(image)) - np.repeat(np.cumsum(end - begin) - (end - begin), end - begin)
    place = np.repeat(begin, end - begin) + within
    of_class = features.channel[labels[image]] == built.feature[place][:, None]
    which, slot = np.nonzero(of_class & (features.kind[labels[image]] != NO_KIND))
    found = np.full((len(labels), features.kind.shape[1]), -1, np.int64)
    found[image[which], slot] = place[which]
    return found

"""Which features stand for a class."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from corm_jax.errors import UserError, lookup
from corm_jax.files import read_json, write_json
from corm_jax.masks.building.store import FeatureStore

SCHEMA = "corm_jax.selected_features/1"


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of a class.

    Attributes:
      class_index: of the class.
      feature: channel of the encoder's penultimate layer.
      rank: 1 for the most important feature of the class.
      importance: mean activation over the class's images, times the weight of the last layer.
    """

    class_index: int
    feature: int
    rank: int
    importance: float


def select(
    store: FeatureStore, head_weight: np.ndarray, *, features_per_class: int = 5, by: str
) -> list[Feature]:
    """Selects the features of each class with the largest mean(activation) * weight.

    Args:
      store: of the training images.
      head_weight: float32 [C, K], kernel of the encoder's last layer.
      features_per_class: how many.
      by: whose mean it is: "prediction", the images that the encoder predicts as the class (Salient
        ImageNet, Singla and Feizi 2022, arXiv:2110.04301), or "label", the images of the class.

    Returns:
      by class, the most important first; of equal ones the lower channel first. A class of no
      images has none.
    """
    groups = lookup(GROUPS, by, "config.features.by")(store)
    sums, counts = _class_sums(store, groups, head_weight.shape[1])
    selected = []
    for index in np.flatnonzero(counts):
        importance = sums[index] / counts[index] * head_weight[:, index].astype(np.float64)
        best = np.argsort(-importance, kind="stable")[:features_per_class]
        selected += [
            Feature(int(index), int(channel), rank, float(importance[channel]))
            for rank, channel in enumerate(best, start=1)
        ]
    return selected


GROUPS = {"prediction": lambda store: store.predicted, "label": lambda store: store.label}


def _class_sums(
    store: FeatureStore, groups: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (sums of activations float64 [K, C], numbers of images int [K]) of each class."""
    sums = np.zeros((classes, store.channels))
    begin = 0
    for activations in store.shard_activations():
        part = slice(begin, begin + len(activations))
        begin += len(activations)
        rows = np.flatnonzero(store.valid[part])
        rows = rows[np.argsort(groups[part][rows], kind="stable")]
        present, starts = np.unique(groups[part][rows], return_index=True)
        if len(present):
            sums[present] += np.add.reduceat(activations[rows].astype(np.float64), starts, axis=0)
    return sums, np.bincount(groups[store.valid], minlength=classes)


def write_features(path: Path, features: Sequence[Feature], class_names: Sequence[str]) -> None:
    """Writes selected features as JSON.

    Args:
      path: the file.
      features: as `select` returns them.
      class_names: of all classes.
    """
    rows = [{"class": class_names[f.class_index], **dataclasses.asdict(f)} for f in features]
    content = {"schema": SCHEMA, "class_names": list(class_names), "features": rows}
    write_json(path, content)


def read_features(path: Path) -> tuple[list[Feature], tuple[str, ...]]:
    """Reads what `write_features` wrote.

    Returns:
      (features, names of all classes).

    Raises:
      UserError: if the file is missing or holds something else.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing; select features first: python -m corm_jax.masks build "
            f"--config=configs/masks.py --workdir={path.parent}"
        )
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path} does not follow {SCHEMA}; remove it and build again")
    names = [field.name for field in dataclasses.fields(Feature)]
    features = [Feature(**{name: row[name] for name in names}) for row in content["features"]]
    return features, tuple(content["class_names"])

"""The (class, feature) pairs of a build, and the images that stand for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corm_jax.errors import UserError
from corm_jax.masks.building.selection import Feature, read_features
from corm_jax.masks.building.store import FeatureStore

TOP_IMAGES = 5  # shown of a pair, as in Salient ImageNet


@dataclass(frozen=True)
class Pairs:
    """The pairs in the order in which they are asked.

    Attributes:
      features: one of each pair.
      class_names: of all classes.
      descriptions: of classes for people, by name; those without are shown by their name alone.
    """

    features: tuple[Feature, ...]
    class_names: tuple[str, ...]
    descriptions: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.features)

    def class_name(self, number: int) -> str:
        """Returns the name of the class of a pair."""
        return self.class_names[self.features[number].class_index]


def read_pairs(workdir: Path, descriptions: Path | None = None) -> Pairs:
    """Reads the selected features of a build.

    Args:
      workdir: of the build.
      descriptions: a file of class names and what they mean, see `read_descriptions`.

    Raises:
      UserError: if there is none, or it selected none; says which command to run.
    """
    features, class_names = read_features(workdir / "features.json")
    if not features:
        raise UserError(f"{workdir}/features.json selects no feature; is its encoder trained?")
    texts = read_descriptions(descriptions, class_names) if descriptions else {}
    return Pairs(tuple(features), class_names, texts)


def read_descriptions(path: Path, class_names: tuple[str, ...]) -> dict[str, str]:
    """Reads what class names mean.

    Args:
      path: a text file, a class a line: its name, blanks, what it means; as ImageNet's words.txt
        and LOC_synset_mapping.txt. Other names may be in it.
      class_names: of the data.

    Raises:
      UserError: if it cannot be read, or knows none of the classes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error})") from error
    words = (line.split(maxsplit=1) for line in lines)
    texts = {word[0]: word[1].strip() for word in words if len(word) == 2}
    known = {name: texts[name] for name in class_names if name in texts}
    if not known:
        raise UserError(f"{path} names none of the classes; its lines must be like {EXAMPLE!r}")
    return known


EXAMPLE = "n02123045 tabby, tabby cat"


def top_images(store: FeatureStore, feature: Feature) -> np.ndarray:
    """Returns int64 [<= TOP_IMAGES]: the images of the class that activate the feature most.

    Their indices in the split, the most active first; of equal ones the first image.
    """
    images = np.flatnonzero((store.label == feature.class_index) & store.valid)
    activations = store.activations(images)[:, feature.feature].astype(np.float32)
    return images[np.argsort(-activations, kind="stable")[:TOP_IMAGES]]

"""Masks of the format salient_imagenet: the archive that Salient ImageNet released.

    <input>/wordnet_dict.py                       {class index: WordNet ID}, a dict literal
    <input>/<wnid>/image_names_map.csv            a column of image names for each feature
    <input>/<wnid>/feature_<index>/<image>.JPEG   grey, 224 x 224, of the central crop of 224 after
                                                  the image's shorter side was resized to 256

Which features are core and which spurious comes from the workers' answers (--annotations, the CSV
file of the authors). An image's core mask is the pixelwise maximum over the masks of its core
features, its spurious mask likewise. Images are named <image>.JPEG, as in ImageNet.
"""

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from corm_jax.errors import UserError
from corm_jax.masks.annotations import ANSWERS_PER_PAIR, MAJORITY, Pair, Votes, read_annotations
from corm_jax.masks.sources.source import Row, Source
from corm_jax.masks.tables import csv_rows

SIDE = 224  # pixels
FRAME = {"type": "center_crop", "resize": 256, "crop": SIDE}
NAMES_FILE = "image_names_map.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this format's arguments."""
    parser.add_argument(
        "--annotations", type=Path, required=True, help="CSV file of the workers' answers"
    )
    parser.add_argument(
        "--votes",
        type=int,
        choices=range(1, ANSWERS_PER_PAIR + 1),
        default=MAJORITY,
        help=f"a feature is spurious where at least so many of its {ANSWERS_PER_PAIR} answers are "
        "not main_object (default: %(default)s)",
    )
    parser.add_argument(
        "--missing",
        choices=("error", "skip"),
        default="error",
        help=f"what to do where a mask that {NAMES_FILE} lists is not there (default: error)",
    )


def open_source(path: Path, arguments: argparse.Namespace) -> Source:
    """Opens the archive's directory at `path`.

    Raises:
      UserError: if it does not follow the layout, or contradicts the annotations.
    """
    annotations = arguments.annotations.expanduser()
    votes = read_annotations(annotations)
    classes = read_wordnet_dict(path / "wordnet_dict.py")
    _check_classes(path, classes, annotations, votes)
    spurious = {pair: answers.is_spurious(arguments.votes) for pair, answers in votes.items()}
    return SalientImagenet(path, list(classes.values()), annotations, spurious, arguments.missing)


class SalientImagenet:
    """The released masks; a `Source`."""

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        annotations: Path,
        spurious: dict[Pair, bool],
        missing: str,
    ) -> None:
        """Reads the lists of all classes and checks that their masks are there.

        Args:
          path: the archive's directory.
          classes: WordNet IDs; those without a directory are left out.
          annotations: the file that `spurious` comes from, for messages.
          spurious: whether a pair is spurious, else it is core.
          missing: "error" or "skip": what to do with a listed mask that is not there.

        Raises:
          UserError: if a list is missing or wrong, or an image stands under two classes.
        """
        self.frame, self.note = FRAME, "Salient ImageNet, released masks"
        self.skipped: Counter[str] = Counter()
        self._path, self._annotations, self._spurious = path, annotations, spurious
        self._classes = [wnid for wnid in classes if (path / wnid).is_dir()]
        self._count = 0
        class_of: dict[str, str] = {}  # image -> its class
        pairs: set[Pair] = set()
        for wnid in tqdm(self._classes, desc="checking", unit="class", delay=2, disable=None):
            listed = self._listed(wnid)
            pairs.update((wnid, feature) for feature in listed)
            images, absent = self._images(wnid, listed)
            if absent and missing == "error":
                raise UserError(
                    f"{absent[0]} is missing, but {NAMES_FILE} lists it; get the archive again, "
                    "or leave such masks out with --missing=skip"
                )
            self._skip("listed masks that are missing", len(absent))
            for image in images:
                if class_of.setdefault(image, wnid) != wnid:
                    raise UserError(
                        f"{path / wnid / NAMES_FILE}: image {image!r} stands under class "
                        f"{class_of[image]} as well"
                    )
            self._count += len(images)
        self._skip("annotated features that are not in the archive", len(spurious.keys() - pairs))

    def __len__(self) -> int:
        return self._count

    def rows(self) -> Iterator[Row]:
        """Yields the rows class by class, in the order of the lists."""
        for wnid in self._classes:
            images, _ = self._images(wnid, self._listed(wnid))
            for image, features in images.items():
                masks: dict[str, np.ndarray] = {}
                for feature in features:
                    kind = "spurious" if self._spurious[wnid, feature] else "core"
                    mask = _read_mask(self._mask_path(wnid, feature, image))
                    masks[kind] = np.maximum(masks[kind], mask) if kind in masks else mask
                yield Row(f"{image}.JPEG", **masks)

    def _mask_path(self, wnid: str, feature: int, image: str) -> Path:
        return self._path / wnid / f"feature_{feature}" / f"{image}.JPEG"

    def _skip(self, reason: str, count: int) -> None:
        if count:
            self.skipped[reason] += count

    def _listed(self, wnid: str) -> dict[int, list[str]]:
        """Returns the image names that a class's list has for each feature."""
        path = self._path / wnid / NAMES_FILE
        rows = csv_rows(path)
        _, header = next(rows)
        features = [self._feature(wnid, column, path) for column in header]
        names: dict[int, dict[str, None]] = {feature: {} for feature in features}
        if len(names) < len(features):
            raise UserError(f"{path} line 1 has two columns of one feature")
        for line, cells in rows:
            if len(cells) > len(features):
                raise UserError(f"{path} line {line} has more cells than the header")
            for feature, name in zip(features, cells, strict=False):
                if not name:
                    continue  # a shorter column
                if not re.fullmatch(r"\w[\w.-]*", name) or name in names[feature]:
                    problem = "twice" if name in names[feature] else "but is no image name"
                    raise UserError(f"{path} line {line}: feature {feature} has {name!r} {problem}")
                names[feature][name] = None
        return {feature: list(listed) for feature, listed in names.items()}

    def _feature(self, wnid: str, column: str, path: Path) -> int:
        if not column.isdecimal():
            raise UserError(f"{path} line 1: column {column!r} is not the index of a feature")
        if (wnid, int(column)) not in self._spurious:
            raise UserError(
                f"{path} line 1: feature {column} of {wnid} has no answers in {self._annotations}"
            )
        return int(column)

    def _images(
        self, wnid: str, listed: dict[int, list[str]]
    ) -> tuple[dict[str, list[int]], list[Path]]:
        """Returns the features with a mask for each image of a class, and the masks missing."""
        images: dict[str, list[int]] = {}
        absent = []
        for feature, names in listed.items():
            directory = self._path / wnid / f"feature_{feature}"
            present = {file.name for file in directory.glob("*.JPEG")}
            for name in names:
                if f"{name}.JPEG" in present:
                    images.setdefault(name, []).append(feature)
                else:
                    absent.append(self._mask_path(wnid, feature, name))
        return images, absent


def _read_mask(path: Path) -> np.ndarray:
    """Returns a mask, uint8 [224, 224]."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if image.mode != "L":
                raise UserError(f"{path} is no grey image (its mode is {image.mode})")
            if image.size != (SIDE, SIDE):
                width, height = image.size
                raise UserError(f"{path} is {width} x {height} pixels, not {SIDE} x {SIDE}")
            image.load()
            return np.asarray(image)
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable JPEG file ({error})") from error


def read_wordnet_dict(path: Path) -> dict[int, str]:
    """Returns class index -> WordNet ID from a file that holds a dict literal, never run as code.

    Raises:
      UserError: if it holds anything else, or names a class twice; names the file and the line.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), mode="eval")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except SyntaxError as error:
        raise UserError(f"{path} line {error.lineno} is no dict literal ({error.msg})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} is no dict literal ({error})") from error
    if not isinstance(tree.body, ast.Dict):
        raise UserError(f"{path} line {tree.body.lineno} is no dict literal")
    classes: dict[int, str] = {}
    for key, value in zip(tree.body.keys, tree.body.values, strict=True):
        index, wnid = _literal(key), _literal(value)
        if type(index) is not int or not re.fullmatch(r"n\d{8}", str(wnid)):
            raise UserError(f"{path} line {value.lineno} is not a class index with its WordNet ID")
        if index in classes or wnid in classes.values():
            raise UserError(f"{path} line {value.lineno} names class {index}: {wnid!r} twice")
        classes[index] = wnid
    return classes


def _literal(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _check_classes(
    path: Path, classes: dict[int, str], annotations: Path, votes: dict[Pair, Votes]
) -> None:
    """Raises UserError if directories or annotations contradict `wordnet_dict.py`."""
    for names_file in sorted(path.glob(f"*/{NAMES_FILE}")):
        if names_file.parent.name not in classes.values():
            raise UserError(f"{names_file.parent} is of a class that wordnet_dict.py does not name")
    for (wnid, _), answers in votes.items():
        expected = classes.get(answers.class_index, wnid)
        if expected != wnid:
            raise UserError(
                f"{annotations} line {answers.line}: class {answers.class_index} is {wnid}, "
                f"wordnet_dict.py has {expected}"
            )

"""Masks of the format coco: instance segmentations, as one JSON file.

    {"images": [{"id", "file_name", "width", "height"}, ...],
     "annotations": [{"id", "image_id", "category_id", "segmentation"}, ...],
     "categories": [{"id", "name"}, ...]}

Other keys are ignored. A segmentation is a list of polygons [x1, y1, x2, y2, ...] in pixels
(fractions too, a corner at most one pixel outside the image), or a run-length encoding
{"size": [height, width], "counts": ...} whose counts are a list of runs of zeros and ones, column
by column, or COCO's compressed string of it.

An image has one class here: that whose instances, crowds included, cover most pixels (a choice of
this project; of two that cover as many, that of the smaller category id). The core mask is the
union of its instances. Images without annotations, or with empty ones, are left out and counted.
The file name of an image is --name with

    {file_name}   as in the JSON file (the default)
    {stem}        its last part, without directories and suffix
    {class}       the name of the image's class
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from corm_jax.errors import UserError
from corm_jax.files import read_json
from corm_jax.masks.records import FULL_FRAME
from corm_jax.masks.sources import segmentation
from corm_jax.masks.sources.naming import check_template, fill
from corm_jax.masks.sources.pictures import check_size
from corm_jax.masks.sources.source import Row, Source

FIELDS = ("file_name", "stem", "class")
TABLES: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int, "segmentation": object},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this format's arguments."""
    parser.add_argument(
        "--name",
        default="{file_name}",
        help="the image's file name, with {file_name}, {stem}, {class} (default: {file_name})",
    )


def open_source(path: Path, arguments: argparse.Namespace) -> Source:
    """Opens the masks of the JSON file at `path`.

    Raises:
      UserError: if it does not follow the format, or pycocotools is not installed; names the
        annotation.
    """
    check_template(arguments.name, FIELDS)
    if path.is_dir():
        raise UserError(f"{path} is a directory; --input is one JSON file, such as instances.json")
    segmentation.check_installed()
    return CocoSource(path, arguments.name)


class CocoSource:
    """The instances of a JSON file; a `Source`."""

    frame: dict[str, Any] = FULL_FRAME

    def __init__(self, path: Path, name: str) -> None:
        """Reads the file, and checks all but the segmentations.

        Args:
          path: the JSON file.
          name: template of the images' file names.
        """
        self._path, self._name = path, name
        self.note = f"COCO instances of {path.name}"
        content = read_json(path)
        images, categories, annotations = (_table(content, table, path) for table in TABLES)
        self._classes = {number: item["name"] for number, item in categories.items()}
        self._images = images
        self._annotations: dict[int, list[dict[str, Any]]] = {}
        for number, image in images.items():
            check_size(image["height"], image["width"], f"{path}: image {number}")
        for number, annotation in annotations.items():
            for key, known in (("image_id", images), ("category_id", categories)):
                if annotation[key] not in known:
                    raise UserError(
                        f"{path}: annotation {number}: {key} {annotation[key]} is not in the file"
                    )
            self._annotations.setdefault(annotation["image_id"], []).append(annotation)
        self.skipped: Counter[str] = Counter()
        if len(self._annotations) < len(images):
            self.skipped["images without annotations"] = len(images) - len(self._annotations)

    def __len__(self) -> int:
        return len(self._annotations)

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of the file's images."""
        seen: dict[str, int] = {}
        for number, image in self._images.items():
            if number not in self._annotations:
                continue
            category, inside = self._largest_class(number)
            if not inside.any():
                self.skipped["images with empty annotations"] += 1
                continue
            name = self._file_name(image, category)
            if name in seen:
                raise UserError(
                    f"{self._path}: --name={self._name} gives the images {seen[name]} and "
                    f"{number} one name, {name!r}"
                )
            seen[name] = number
            yield Row(name, core=np.where(inside, np.uint8(255), np.uint8(0)))

    def _largest_class(self, number: int) -> tuple[int, np.ndarray]:
        """Returns the category that covers most of an image, and where, bool [height, width]."""
        image = self._images[number]
        unions: dict[int, np.ndarray] = {}
        for annotation in self._annotations[number]:
            where = f"{self._path}: annotation {annotation['id']}"
            instance = segmentation.decode(
                annotation["segmentation"], image["height"], image["width"], where
            )
            category = annotation["category_id"]
            unions[category] = unions.get(category, False) | instance
        largest = max(unions, key=lambda category: (unions[category].sum(), -category))
        return largest, unions[largest]

    def _file_name(self, image: dict[str, Any], category: int) -> str:
        values = {
            "file_name": image["file_name"],
            "stem": PurePosixPath(image["file_name"]).stem,
            "class": self._classes[category],
        }
        return fill(self._name, values)


def _table(content: Any, table: str, path: Path) -> dict[int, dict[str, Any]]:
    """Returns id -> item of one of the file's lists."""
    items = content.get(table) if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise UserError(f"{path} has no list {table!r}: not COCO's instance format")
    by_id: dict[int, dict[str, Any]] = {}
    for position, item in enumerate(items):
        where = f"{path}: {table}[{position}]"
        if isinstance(item, dict) and isinstance(item.get("id"), int):
            where += f" (id {item['id']})"
        for key, kind in TABLES[table].items():
            if not isinstance(item, dict) or key not in item:
                raise UserError(f"{where} has no {key!r}")
            if not isinstance(item[key], kind):
                raise UserError(f"{where}: {key} {item[key]!r} is not of type {kind.__name__}")
        if item["id"] in by_id:
            raise UserError(f"{where}: a second item of this id")
        by_id[item["id"]] = item
    return by_id

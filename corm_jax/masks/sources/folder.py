"""Masks of the format folder: a tree of grey PNG or JPEG files.

    <input>/<any directories>/<mask>.png|jpg|jpeg

8-bit soft or 1-bit, 255 on the object. The file name of a mask's image is --name with

    {path}     the mask's path below the input, without suffix, such as n01440764/n01440764_18
    {stem}     its last part, such as n01440764_18
    {parent}   the name of its directory, such as n01440764

By default it is {path}, which fits a folder of images/<class>/<id>.jpg whose masks are
masks/<class>/<id>.png (input: masks); for ImageNet it is --name={stem}.JPEG. Spurious masks stand
in a tree of their own, at the same paths up to the suffix. Pixels are taken as they are stored: an
orientation in EXIF data is ignored. Hidden files are ignored.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from corm_jax.errors import UserError
from corm_jax.masks.records import FULL_FRAME, check_frame
from corm_jax.masks.sources.naming import check_template, fill
from corm_jax.masks.sources.pictures import SUFFIXES, check_white, read_grey
from corm_jax.masks.sources.source import Row, Source
from corm_jax.masks.sources.tree import visible_files

FIELDS = ("path", "stem", "parent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this format's arguments."""
    parser.add_argument(
        "--name",
        default="{path}",
        help="the image's file name, with {path}, {stem}, {parent} (default: {path})",
    )
    parser.add_argument(
        "--spurious",
        type=lambda text: Path(text).expanduser(),
        help="a second tree: spurious masks",
    )
    parser.add_argument(
        "--frame",
        default="full",
        help="what the masks cover: full (default), or center_crop:RESIZE,CROP, the central CROP x "
        "CROP after the image's shorter side was resized to RESIZE, such as center_crop:256,224",
    )


def open_source(path: Path, arguments: argparse.Namespace) -> Source:
    """Opens the masks at `path`.

    Raises:
      UserError: if there are none, two have one name, they are no masks, or an option is wrong.
    """
    return FolderSource(path, arguments.spurious, arguments.name, _frame(arguments.frame))


class FolderSource:
    """A tree of core masks, maybe beside one of spurious masks; a `Source`."""

    def __init__(self, core: Path, spurious: Path | None, name: str, frame: dict[str, Any]) -> None:
        """Lists and checks the masks; arguments as on the command line."""
        check_template(name, FIELDS)
        self.frame, self.note = frame, f"masks of {core.name}"
        self.skipped: Counter[str] = Counter()
        self._roots = {"core": core} | ({"spurious": spurious} if spurious else {})
        self._trees = {kind: self._tree(root) for kind, root in self._roots.items()}
        paths: set[str] = set().union(*self._trees.values())
        self._names = {path: _name(name, path) for path in sorted(paths)}
        seen: dict[str, str] = {}
        for path, image in self._names.items():
            if image in seen:
                raise UserError(
                    f"--name={name} gives the masks {seen[image]} and {path} in {core} one name, "
                    f"{image!r}; use {{path}}"
                )
            seen[image] = path

    def __len__(self) -> int:
        return len(self._names)

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of their paths."""
        for path, name in self._names.items():
            yield Row(name, **{kind: self._read(kind, path) for kind in self._trees})

    def _tree(self, root: Path) -> dict[str, str]:
        """Returns path without suffix -> suffix of the masks below `root`."""
        found: dict[str, str] = {}
        for path in visible_files(root):
            stem, suffix = os.path.splitext(path)  # noqa: PTH122 - a million paths as strings
            if suffix.lower() not in SUFFIXES:
                self.skipped[f"files that are not {', '.join(SUFFIXES)}"] += 1
            elif stem in found:
                raise UserError(
                    f"{root / (stem + found[stem])} and {root / path} are masks of one name; "
                    "remove one of them"
                )
            else:
                found[stem] = suffix
        if not found:
            raise UserError(f"{root} holds no masks ({', '.join(SUFFIXES)})")
        check_white([root / (stem + suffix) for stem, suffix in sorted(found.items())])
        return found

    def _read(self, kind: str, path: str) -> np.ndarray | None:
        """Returns the mask of a kind, None if there is none."""
        suffix = self._trees[kind].get(path)
        if suffix is None:
            return None
        file = self._roots[kind] / (path + suffix)
        mask = read_grey(file)
        height, width = mask.shape
        if self.frame["type"] == "center_crop" and height != width:
            raise UserError(
                f"mask {file} is {width} x {height} pixels, no square: not made on a centre crop; "
                "leave out --frame"
            )
        return mask


def _name(template: str, path: str) -> str:
    pure = PurePath(path)
    values = {"path": pure.as_posix(), "stem": pure.name, "parent": pure.parent.name}
    return fill(template, values)


def _frame(text: str) -> dict[str, Any]:
    """Returns the frame that `--frame=text` stands for."""
    if text == "full":
        return FULL_FRAME
    sizes = re.fullmatch(r"center_crop:(\d+),(\d+)", text)
    if sizes is None:
        raise UserError(f"--frame={text} is not full or center_crop:RESIZE,CROP")
    frame = {"type": "center_crop", "resize": int(sizes[1]), "crop": int(sizes[2])}
    check_frame(frame, f"--frame={text}")
    return frame

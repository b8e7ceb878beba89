"""Masks of the format boxes: bounding boxes, as XML files or as one CSV file.

A directory of XML files (ImageNet's official boxes, train or val; `Annotation/<wnid>/<image>.xml`):

    <annotation>
      <size><width>500</width><height>375</height></size>
      <object><bndbox>
        <xmin>111</xmin><ymin>108</ymin><xmax>441</xmax><ymax>193</ymax>
      </bndbox></object>                                          any number of objects
    </annotation>

The image of <image>.xml is <image>.JPEG; <filename> is not read, as it is wrong in some of
ImageNet's files. The development kit of ILSVRC calls them PASCAL VOC's format: columns xmin to
xmax and rows ymin to ymax, both included, counted from 1. Some files hold a 0, which means the same
as 1. The size is that at which the boxes were drawn, and may differ from the image's by its scale.

Or a CSV file, with several lines for an image of several boxes:

    file_name,width,height,xmin,ymin,xmax,ymax
    n01440764_18.JPEG,500,375,110,107,441,193

with columns xmin to xmax - 1 and rows ymin to ymax - 1, counted from 0.

The core mask is the union of an image's boxes. Fractions are rounded; a box may end one pixel
outside its image. A few of ImageNet's own boxes end further outside, or have xmin > xmax: this is
an error, as what was meant is unknown; --skip_invalid leaves such images out and counts them.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException

from corm_jax.errors import UserError
from corm_jax.masks.records import FULL_FRAME
from corm_jax.masks.sources.pictures import check_size
from corm_jax.masks.sources.source import Row, Source
from corm_jax.masks.sources.tree import visible_files

EDGES = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("file_name", "width", "height", *EDGES)
ROUNDING = 1  # pixels that a box may end outside its image

Box = tuple[int, int, int, int]  # xmin, ymin, xmax, ymax: counted from 0, the last two excluded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this format's arguments."""
    parser.add_argument(
        "--skip_invalid",
        action="store_true",
        help="leave out images with a box outside the image, rather than stop",
    )


def open_source(path: Path, arguments: argparse.Namespace) -> Source:
    """Opens the boxes at `path`: a directory of XML files, or a CSV file.

    Raises:
      UserError: if there are none, or the CSV file cannot be read; names file and line.
    """
    if path.suffix.lower() == ".csv":
        images = _read_csv(path)
        return BoxSource(images, lambda name: images[name], path.name, arguments.skip_invalid)
    if not path.is_dir():
        raise UserError(f"{path} is neither a directory of .xml files nor a .csv file")
    files = _xml_files(path)
    return BoxSource(files, lambda name: _read_xml(files[name]), path.name, arguments.skip_invalid)


class InvalidBoxError(UserError):
    """A box that lies outside its image, or has no inside."""


@dataclass
class Boxes:
    """The boxes of one image.

    Attributes:
      height: of the image, in pixels.
      width: likewise.
      where: for messages, what a box's number counts, such as "boxes.csv, line".
      boxes: (number, box).
    """

    height: int
    width: int
    where: str
    boxes: list[tuple[int, Box]] = field(default_factory=list)

    def mask(self) -> np.ndarray:
        """Returns the union as uint8 [height, width], 255 inside.

        Raises:
          InvalidBoxError: names the box.
        """
        mask = np.zeros((self.height, self.width), np.uint8)
        for number, (left, top, right, bottom) in self.boxes:
            fits = -ROUNDING <= left < right <= self.width + ROUNDING
            fits = fits and -ROUNDING <= top < bottom <= self.height + ROUNDING
            inside = mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if not fits or inside.size == 0:
                raise InvalidBoxError(
                    f"{self.where} {number}: the box from column {left} to {right}, row {top} "
                    f"to {bottom} (counted from 0, ends excluded) is not inside its image of "
                    f"{self.width} x {self.height} pixels; correct it, or leave such images out "
                    "by --skip_invalid"
                )
            inside[:] = 255
        return mask


class BoxSource:
    """Images with boxes; a `Source`."""

    frame: dict[str, Any] = FULL_FRAME

    def __init__(
        self,
        images: dict[str, Any],
        read: Callable[[str], Boxes],
        what: str,
        skip_invalid: bool,
    ) -> None:
        """Holds the file names of images and a function that reads the boxes of one."""
        self._images, self._read, self._skip_invalid = images, read, skip_invalid
        self.note = f"bounding boxes of {what}"
        self.skipped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._images)

    def rows(self) -> Iterator[Row]:
        """Yields the rows in the order of the file names (XML) or of the lines (CSV)."""
        for name in self._images:
            image = self._read(name)
            if not image.boxes:
                self.skipped["images without a box"] += 1
                continue
            try:
                mask = image.mask()
            except InvalidBoxError:
                if not self._skip_invalid:
                    raise
                self.skipped["images with a box that is not inside its image"] += 1
                continue
            yield Row(name, core=mask)


def _xml_files(root: Path) -> dict[str, Path]:
    """Returns the image's file name -> path of the XML files below `root`."""
    found: dict[str, Path] = {}
    for path in map(root.joinpath, visible_files(root)):
        if path.suffix.lower() != ".xml":
            continue
        name = f"{path.stem}.JPEG"
        if name in found:
            raise UserError(f"{found[name]} and {path} are of one image; remove one of them")
        found[name] = path
    if not found:
        raise UserError(f"{root} holds no .xml files")
    return found


def _read_xml(path: Path) -> Boxes:
    try:
        root = defusedxml.ElementTree.parse(path).getroot()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise UserError(f"{path} is not a readable XML file ({error})") from error
    height, width = (_value(root, f"size/{side}", str(path)) for side in ("height", "width"))
    check_size(height, width, str(path))
    where = f"{path}, object"
    image = Boxes(height, width, where)
    for number, element in enumerate(root.findall("object"), 1):
        left, top, right, bottom = (
            _value(element, f"bndbox/{edge}", f"{where} {number}") for edge in EDGES
        )
        # From 1 with the ends included, to from 0 with the last ones excluded.
        image.boxes.append((number, (left - 1, top - 1, right, bottom)))
    return image


def _value(element: Element, path: str, where: str) -> int:
    text = element.findtext(path)
    if text is None:
        raise UserError(f"{where}: there is no <{path.replace('/', '><')}>")
    return _number(text, f"{where}: <{path.rpartition('/')[2]}>")


def _number(text: str, where: str) -> int:
    try:
        return round(float(text))
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where} {text!r} is not a number") from error


def _read_csv(path: Path) -> dict[str, Boxes]:
    """Returns file name -> boxes of a CSV file."""
    images: dict[str, Boxes] = {}
    where = f"{path}, line"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if set(COLUMNS) - set(reader.fieldnames or ()):
                raise UserError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}")
            for fields in reader:
                _add_line(images, fields, where, reader.line_num)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{where} {reader.line_num + 1} or later: not CSV ({error})") from error
    if not images:
        raise UserError(f"{path} holds no boxes")
    return images


def _add_line(images: dict[str, Boxes], fields: dict[Any, Any], where: str, number: int) -> None:
    """Adds the box of a line to its image."""
    line = f"{where} {number}"
    if None in fields or None in fields.values():
        raise UserError(f"{line}: not as many fields as columns")
    name = fields["file_name"]
    if not name:
        raise UserError(f"{line}: no file_name")
    width, height, *box = (_number(fields[column], f"{line}: {column}") for column in COLUMNS[1:])
    check_size(height, width, line)
    image = images.setdefault(name, Boxes(height, width, where))
    if (image.height, image.width) != (height, width):
        raise UserError(
            f"{line}: {name} has {width} x {height} pixels, in a line before "
            f"{image.width} x {image.height}"
        )
    image.boxes.append((number, tuple(box)))

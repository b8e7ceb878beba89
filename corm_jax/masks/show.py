"""Draw a contact sheet of images with their masks: core green, spurious red, frame dashed.

Images come from a folder, a prepared TFDS data set, or any tree of files; without any, the masks
are drawn alone. Pixels are taken as they are stored: an orientation in EXIF data is ignored.
"""

import argparse
import io
import math
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from corm_jax.data.geometry import center_crop_share
from corm_jax.errors import UserError
from corm_jax.files import replacing
from corm_jax.masks import images, pixels
from corm_jax.masks.classes import NO_CLASS, class_of
from corm_jax.masks.records import KINDS, MaskRecords

matplotlib.use("agg")

PICTURE = "show.png"
MOST = 400  # images on one sheet
PANEL = 320  # longer side of an image in pixels
COLORS = {"core": "lime", "spurious": "red"}
OPACITY = 0.5  # where the mask is 255
TITLE = 30  # characters of a file name

Edges = tuple[float, float, float, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("records", type=Path, metavar="DIR", help="directory of mask records")
    parser.add_argument("--n", type=int, default=16, help="number of images (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="chooses them (default: 0)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--folder", type=Path, metavar="DIR", help="images are DIR/images/<class>/<id>.jpg"
    )
    source.add_argument("--dataset", metavar="NAME", help="images are a prepared TFDS data set's")
    source.add_argument(
        "--images", type=Path, metavar="DIR", help="images are a tree of files, found by name"
    )
    parser.add_argument("--data_dir", type=Path, metavar="DIR", help="where TFDS data sets are")
    parser.add_argument("--split", default="train", help="of the data set (default: train)")
    parser.add_argument("--output", type=Path, metavar="PNG", help=f"default: DIR/{PICTURE}")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if not 0 < arguments.n <= MOST or arguments.seed < 0:
        raise UserError(f"--n is a number from 1 to {MOST}, --seed a number from 0")
    records = MaskRecords.open(arguments.records)
    found = _find_images(arguments, records.file_names)
    rows = choose(records, found, n=arguments.n, seed=arguments.seed)
    output = arguments.output or arguments.records / PICTURE
    draw(output, records, found, rows)
    print(f"{len(rows)} of {len(records.file_names):,} records: {output}")
    if found is None:
        print("the masks alone; name their images with --images, --folder or --dataset")


def _find_images(arguments: argparse.Namespace, names: np.ndarray) -> images.Images | None:
    if arguments.dataset:
        return images.from_dataset(arguments.dataset, arguments.data_dir, arguments.split, names)
    tree = arguments.folder / "images" if arguments.folder else arguments.images
    return images.from_tree(tree, names) if tree else None


def choose(records: MaskRecords, found: images.Images | None, *, n: int, seed: int) -> np.ndarray:
    """Chooses up to `n` of the rows that have a mask, and an image if there are images.

    Returns:
      int64 [<= n], in the order of the file names.

    Raises:
      UserError: if there is none.
    """
    masked = records.has("core") | records.has("spurious")
    rows = np.flatnonzero(masked)
    if found is not None:
        rows = found.rows[masked[found.rows]]
    if not len(rows):
        with_image = "" if found is None else " that has an image"
        raise UserError(f"{records.path} has no record with a mask{with_image}")
    chosen = np.random.default_rng(seed).choice(rows, min(n, len(rows)), replace=False)
    return chosen[np.argsort(records.file_names[chosen])]


def frame_edges(records: MaskRecords, row: int, size: tuple[int, int]) -> Edges:
    """Returns top, left, bottom, right of a mask's frame in pixels of its image.

    Args:
      records: the mask's records.
      row: the mask's row.
      size: height and width of the image in pixels.
    """
    height, width = size
    if share := center_crop_share(records.frame):
        side = share * min(size)
        top, left = (height - side) / 2, (width - side) / 2
        return top, left, top + side, left + side
    top, left, bottom, right = map(float, records.boxes(np.array([row]))[0])
    return top * height, left * width, bottom * height, right * width


def place(mask: np.ndarray, edges: Edges, size: tuple[int, int]) -> np.ndarray:
    """Stretches a mask over its frame, bilinearly with half-pixel centres.

    Args:
      mask: uint8 [h, w].
      edges: of the frame, see `frame_edges`.
      size: height and width of the image in pixels.

    Returns:
      uint8 [height, width], 0 outside the frame.
    """
    top, left, bottom, right = edges
    rows, columns = mask.shape[0] / (bottom - top), mask.shape[1] / (right - left)
    # Pillow maps the centre of each of the image's pixels; beyond the mask's edge it gives 0.
    placed = Image.fromarray(mask).transform(
        (size[1], size[0]),
        Image.Transform.AFFINE,
        (columns, 0, -left * columns, 0, rows, -top * rows),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(placed)


def tint(image: np.ndarray, mask: np.ndarray, color: str) -> np.ndarray:
    """Returns image float [H, W, 3] in [0, 1] with a colour laid over it where the mask is.

    Args:
      image: float [H, W, 3] in [0, 1].
      mask: uint8 [H, W]; 255 takes the colour at `OPACITY`.
      color: matplotlib's name.
    """
    opacity = OPACITY * mask[..., None] / 255
    return (1 - opacity) * image + opacity * np.array(to_rgb(color))


def draw(path: Path, records: MaskRecords, found: images.Images | None, rows: np.ndarray) -> None:
    """Draws the sheet.

    Args:
      path: PNG file to write.
      records: the mask records.
      found: their images, None to draw the masks alone.
      rows: which records to draw.

    Raises:
      UserError: if an image or a mask cannot be decoded; names it.
    """
    columns = math.ceil(math.sqrt(len(rows)))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(max(4, 2.6 * columns), 2.7 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, row in zip(panels, map(int, rows), strict=False):
        _draw_row(axes, records, found, row)
    kinds = [kind for kind in KINDS if records.has(kind)[rows].any()]
    legend: list[Patch] = [Patch(color=COLORS[kind], alpha=OPACITY, label=kind) for kind in kinds]
    if found is None:
        figure.suptitle("the masks alone, each in its own frame", fontsize=10)
    elif records.frame["type"] != "full":
        legend.append(Patch(fill=False, edgecolor="gold", linestyle="--", label="the masks' frame"))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_row(axes: Axes, records: MaskRecords, found: images.Images | None, row: int) -> None:
    masks = {kind: pixels.read(records, kind, row) for kind in KINDS if records.has(kind)[row]}
    name = records.file_names[row].decode("utf-8", "backslashreplace")
    if found is None:
        shape = next(iter(masks.values())).shape
        class_name, image = class_of(name), np.full((*_panel_size(shape), 3), 0.1)
        edges: Edges = (0.0, 0.0, *map(float, image.shape[:2]))
    else:
        stored = found.read(row)
        class_name, image = stored.class_name, _decode(stored)
        edges = frame_edges(records, row, image.shape[:2])
    for kind, mask in masks.items():
        image = tint(image, place(mask, edges, image.shape[:2]), COLORS[kind])
    axes.imshow(image)
    if records.frame["type"] != "full" and found is not None:
        top, left, bottom, right = edges
        # imshow's pixel centres have whole coordinates.
        corner = (left - 0.5, top - 0.5)
        axes.add_patch(
            Rectangle(corner, right - left, bottom - top, fill=False, ec="gold", ls="--")
        )
    shown = name if len(name) <= TITLE else f"...{name[-TITLE:]}"
    title = shown if class_name == NO_CLASS else f"{shown}\n{class_name}"
    axes.set_title(title, fontsize=8, parse_math=False)


def _panel_size(shape: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of a mask's panel: its own, enlarged or reduced to `PANEL`."""
    scale = PANEL / max(shape)
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _decode(stored: images.Image) -> np.ndarray:
    """Returns an image, float32 [H, W, 3] in [0, 1], its longer side at most `PANEL` pixels."""
    try:
        with Image.open(io.BytesIO(stored.data)) as image:
            small = image.convert("RGB")
            small.thumbnail((PANEL, PANEL))
    except pixels.DAMAGE as error:
        raise UserError(f"{stored.where} cannot be decoded ({error})") from error
    return np.asarray(small, np.float32) / 255

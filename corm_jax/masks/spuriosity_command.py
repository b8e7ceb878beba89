"""Rank the images of each class by its spurious features, in a workdir of `masks build`.

Writes spuriosity.csv (file_name, class, score, rank; 1 is the most spurious image of its class)
and spuriosity.png, the most and the least spurious images of a few classes; prints the encoder's
own spurious gap: its accuracy on the most spurious images of a class minus that on the least.
"""

import argparse
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from corm_jax.errors import UserError
from corm_jax.files import read_json, replacing
from corm_jax.masks import pixels
from corm_jax.masks.annotations import check_selected, read_annotations
from corm_jax.masks.building.selection import Feature, read_features
from corm_jax.masks.building.store import FeatureStore
from corm_jax.masks.spuriosity import Ranking, rank, spurious_gap

if TYPE_CHECKING:
    from corm_jax.data.pipeline import ImageSource

matplotlib.use("agg")

TABLE, PICTURE = "spuriosity.csv", "spuriosity.png"
CLASSES = 6  # on the picture
MOST = 40  # images of a row
PANEL = 160  # longer side of an image in pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="of a finished masks build")
    parser.add_argument(
        "--split", choices=("train", "validation"), default="train", help="(default: train)"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="CSV", help="default: those of the build"
    )
    parser.add_argument(
        "--n", type=int, default=8, help="images at each end of a ranking to draw (default: 8)"
    )
    parser.add_argument(
        "--k", type=int, default=100, help="images at each end for the spurious gap (default: 100)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: WORKDIR)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    if not 1 <= arguments.n <= MOST:
        raise UserError(f"--n is a number from 1 to {MOST}")
    workdir = arguments.workdir
    features, class_names = read_features(workdir / "features.json")
    config = ConfigDict(read_json(workdir / "config.json"))
    spurious = spurious_features(
        _annotations(arguments.annotations, config, workdir), config, features, class_names
    )
    store = FeatureStore(workdir / "store" / arguments.split)
    ranking = rank(store.activations, np.where(store.valid, store.label, -1), spurious)
    output = arguments.output or workdir
    write_table(output / TABLE, ranking, store.file_names, class_names)
    print(
        f"{sum(map(len, ranking.order.values())):,} images of {len(ranking.order):,} classes with "
        f"a spurious feature: {output / TABLE}"
    )
    measured = spurious_gap(ranking.order, store.predicted == store.label, arguments.k)
    print(
        f"the encoder's spurious gap: {100 * measured.gap:+.1f} points ({100 * measured.top:.1f}% "
        f"on the most, {100 * measured.bottom:.1f}% on the least spurious {arguments.k} a class)"
    )
    images = _open_images(config, arguments.split, store)
    draw(output / PICTURE, ranking, images, n=arguments.n)
    print(f"picture: {output / PICTURE}")


def _annotations(given: Path | None, config: ConfigDict, workdir: Path) -> Path:
    """Returns the path of the annotations: given, the build's, or the workdir's own."""
    path = given or config.annotations.path or workdir / "annotations.csv"
    return Path(path).expanduser()


def spurious_features(
    path: Path, config: ConfigDict, features: Sequence[Feature], class_names: Sequence[str]
) -> dict[int, list[int]]:
    """Returns the channels of the spurious features of each class that has some.

    Args:
      path: of the annotations.
      config: of the build, whose number of votes decides.
      features: the selected ones.
      class_names: of all classes: what the annotations call WordNet IDs.

    Raises:
      UserError: if the annotations cannot be read, are of other features, or call none spurious.
    """
    rule = config.annotations
    annotations = read_annotations(path, rule.answers_per_pair)
    pairs = {(class_names[f.class_index], f.feature): f for f in features}
    check_selected(path, annotations, pairs)
    found: dict[int, list[int]] = {}
    for pair, feature in pairs.items():
        if annotations[pair].is_spurious(rule.votes):
            found.setdefault(feature.class_index, []).append(feature.feature)
    if not found:
        raise UserError(f"{path} calls no feature spurious: there is nothing to rank images by")
    return found


def write_table(
    path: Path, ranking: Ranking, file_names: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes a ranking as CSV, class by class, the most spurious image first.

    Args:
      path: the file.
      ranking: of a split.
      file_names: bytes [N], of the split.
      class_names: of all classes.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["file_name", "class", "score", "rank"])
        for index, images in sorted(ranking.order.items()):
            for place, image in enumerate(images, start=1):
                name, score = os.fsdecode(file_names[image]), ranking.scores[image]
                writer.writerow([name, class_names[index], f"{score:.6f}", place])


def _open_images(config: ConfigDict, split: str, store: FeatureStore) -> "ImageSource":
    """Opens the images of the build."""
    from corm_jax.masks.building.splits import (
        open_splits,
    )  # imports tensorflow: a bad call is quick

    images = open_splits(config).images[split]
    if not np.array_equal(images.file_names, store.file_names):
        raise UserError(
            f"the images have changed since {store.directory} was made; build again in another "
            "workdir"
        )
    return images


def draw(path: Path, ranking: Ranking, images: "ImageSource", *, n: int) -> None:
    """Draws the most and the least spurious images of a few classes, spread over all of them.

    Args:
      path: PNG file to write.
      ranking: of the split.
      images: of the split.
      n: how many at each end; fewer of a class of fewer than 2n.

    Raises:
      UserError: if an image cannot be decoded; names it.
    """
    ranked = sorted(ranking.order)
    chosen = sorted(
        {ranked[i] for i in np.linspace(0, len(ranked) - 1, CLASSES).round().astype(int)}
    )
    figure = Figure(figsize=(1.3 * n + 1, 3 * len(chosen)), layout="constrained")
    panels = figure.subplots(2 * len(chosen), n, squeeze=False)
    for row, index in enumerate(chosen):
        order = ranking.order[index]
        some = min(n, -(-len(order) // 2))
        ends: Mapping[str, np.ndarray] = {"most": order[:some], "least": order[-some:]}
        for line, (end, shown) in zip(panels[2 * row : 2 * row + 2], ends.items(), strict=True):
            for axes in line:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(f"{images.class_names[index]}\n{end} spurious", parse_math=False)
            for axes, image in zip(line, shown, strict=False):
                axes.imshow(_decode(images, int(image)))
                axes.set_title(f"{ranking.scores[image]:.2f}", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100)


def _decode(images: "ImageSource", index: int) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3], its longer side at most `PANEL` pixels."""
    ((data, _),) = images.read([index])
    try:
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB")
            small.thumbnail((PANEL, PANEL))
    except pixels.DAMAGE as error:
        raise UserError(f"{images.describe(index)} cannot be decoded ({error})") from error
    return np.asarray(small)

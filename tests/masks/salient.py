"""A small archive with the layout of Salient ImageNet's masks, and its annotations."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from corm_jax.masks.annotations import COLUMNS

TENCH, GOLDFISH, SHARK = "n01440764", "n01443537", "n01484850"
CLASSES = {0: TENCH, 1: GOLDFISH, 2: SHARK}
# (class, feature) -> how many of five answers are main_object, separate_object, background
VOTES = {
    (TENCH, 11): (5, 0, 0),
    (TENCH, 12): (3, 1, 1),
    (TENCH, 13): (2, 2, 1),
    (GOLDFISH, 11): (1, 0, 4),
    (SHARK, 30): (5, 0, 0),
}
# (class, feature) -> image -> grey level of the mask's left and right half
MASKS = {
    (TENCH, 11): {f"{TENCH}_1": (200, 0), f"{TENCH}_2": (10, 20), f"{TENCH}_4": (255, 255)},
    (TENCH, 12): {f"{TENCH}_1": (50, 90)},
    (TENCH, 13): {f"{TENCH}_1": (0, 255), f"{TENCH}_3": (30, 40)},
    (GOLDFISH, 11): {f"{GOLDFISH}_7": (0, 70)},
}


def halves(left: int, right: int) -> np.ndarray:
    """Returns uint8 [224, 224]; best-quality JPEG keeps it exactly, as its blocks are uniform."""
    mask = np.empty((224, 224), np.uint8)
    mask[:, :112], mask[:, 112:] = left, right
    return mask


def save_mask(path: Path, mask: np.ndarray, mode: str = "L", form: str = "JPEG") -> None:
    Image.fromarray(mask).convert(mode).save(path, form, quality=100)


def write_names(path: Path, columns: Mapping[int, Sequence[str]]) -> None:
    """Writes a list of image names, shorter columns filled up with empty cells."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(itertools.zip_longest(*columns.values(), fillvalue=""))


def write_archive(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "wordnet_dict.py").write_text(repr(CLASSES))
    columns: dict[str, dict[int, list[str]]] = {}
    for (wnid, feature), images in MASKS.items():
        directory = root / wnid / f"feature_{feature}"
        directory.mkdir(parents=True)
        for image, levels in images.items():
            save_mask(directory / f"{image}.JPEG", halves(*levels))
        columns.setdefault(wnid, {})[feature] = list(images)
    for wnid, names in columns.items():
        write_names(root / wnid / "image_names_map.csv", names)
    return root


def annotation_rows(votes: Mapping[tuple[str, int], Sequence[int]] = VOTES) -> list[list[str]]:
    index_of = {wnid: index for index, wnid in CLASSES.items()}
    answers = ("main_object", "separate_object", "background")
    rows = []
    for (wnid, feature), counts in votes.items():
        given = [answer for answer, n in zip(answers, counts, strict=True) for _ in range(n)]
        for worker, answer in enumerate(given):
            pair = [wnid, str(index_of[wnid]), str(feature), "1"]
            rows.append([str(worker), *pair, answer, "4.0", "It is red, I think."])
    return rows


def write_annotations(
    path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS
) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path

"""Built masks beside the true ones of a data set that has them: for the demo and the report."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from corm_jax.data.join import join
from corm_jax.masks import pixels
from corm_jax.masks.building.selection import Feature
from corm_jax.masks.building.store import FeatureStore
from corm_jax.masks.records import MaskRecords, MaskSource

SIZE = 48  # height and width in pixels at which masks are compared
LOOKED_AT = 20  # images of a pair
DILATION = 7  # side in pixels of the square that a mask is dilated by: maps are coarse


def true_masks(masks: MaskSource, file_names: np.ndarray, share: float) -> np.ndarray:
    """Returns uint8 [n, SIZE, SIZE]: true core masks in the encoder's view, 0 where there is none.

    Args:
      masks: the data set's own, of frame "full".
      file_names: bytes [n], of the images.
      share: side of the encoder's central square over the image's shorter side.
    """
    rows = join(file_names, masks.file_names).rows
    result = np.zeros((len(rows), SIZE, SIZE), np.uint8)
    for place in np.flatnonzero(rows >= 0):
        mask = Image.fromarray(pixels.read(masks, "core", int(rows[place])))
        side = share * min(mask.size)
        left, top = ((length - side) / 2 for length in mask.size)
        box = (left, top, left + side, top + side)
        result[place] = mask.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
    return result


def enlarge(grids: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, SIZE, SIZE]: grids uint8 [n, h, w] resized bilinearly."""
    sized = [
        Image.fromarray(grid).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for grid in grids
    ]
    return np.stack([np.asarray(image) for image in sized])


def answers_of_masks(
    store: FeatureStore, features: Sequence[Feature], masks: MaskSource, share: float
) -> list[str]:
    """Answers in the workers' place, to each feature.

    Returns:
      "main_object" where most of the feature's map lies on the dilated true mask, over the
      `LOOKED_AT` images of the class that activate it most; else "background".
    """
    answers = []
    for feature in features:
        images = np.flatnonzero((store.label == feature.class_index) & store.valid)
        activations = store.activations(images)[:, feature.feature].astype(np.float32)
        channel = np.full(len(images), feature.feature)
        stored = store.has_map(images, channel)
        top = np.argsort(-np.where(stored, activations, -np.inf), kind="stable")[:LOOKED_AT]
        top = images[top[stored[top]]]
        maps = enlarge(store.maps(top, channel[: len(top)])).astype(np.float64)
        inside = [
            np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(DILATION))) > 127
            for mask in true_masks(masks, store.file_names[top], share)
        ]
        on_object = (maps * np.stack(inside)).sum() > 0.5 * maps.sum()
        answers.append("main_object" if on_object else "background")
    return answers


def intersection_over_union(
    records: MaskRecords, masks: MaskSource, file_names: Mapping[str, np.ndarray], share: float
) -> dict[str, dict[str, float]]:
    """Compares built core masks with the true ones.

    Args:
      records: the built ones, grids.
      masks: the data set's own, of frame "full".
      file_names: split -> bytes [n], names of its images.
      share: see `true_masks`.

    Returns:
      split -> {"images": compared, "binary": mean intersection over union of the built mask above
      half of its maximum and the true one above 1/2, "soft": mean of sum(min) / sum(max)}.
    """
    results = {}
    for split, names in file_names.items():
        rows = join(names, records.file_names).rows
        has = rows >= 0
        has[has] = records.has("core")[rows[has]]
        built = records.grids("core", rows[has])
        scores = []
        for begin in tqdm(range(0, int(has.sum()), 1000), desc=f"comparing {split}", disable=None):
            part = slice(begin, begin + 1000)
            truth = true_masks(masks, names[has][part], share)
            scores.append(_scores(enlarge(built[part]), truth))
        if scores:
            binary, soft = np.concatenate(scores, axis=1).mean(axis=1)
            results[split] = {
                "images": int(has.sum()),
                "binary": float(binary),
                "soft": float(soft),
            }
    return results


def _scores(built: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns float64 [2, n]: binary and soft intersection over union of uint8 [n, H, W]."""
    axes = (1, 2)
    maximum = built.max(axis=axes, keepdims=True)
    above, true = (built > 0.5 * maximum), truth > 127
    binary = (above & true).sum(axis=axes) / np.maximum((above | true).sum(axis=axes), 1)
    low, high = (f(built, truth).sum(axis=axes, dtype=np.float64) for f in (np.minimum, np.maximum))
    return np.stack([binary, low / np.maximum(high, 1.0)])

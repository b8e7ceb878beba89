"""The image panels: what the protocols show the models, what these say, and where they look."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from corm_jax import example_file
from corm_jax.example_file import FILE_NAME, Examples
from corm_jax.html_report.columns import title
from corm_jax.html_report.evaluations import Evaluation

QUALITY = 82  # of JPEG
LEVELS = 24  # of saliency
FAINT, STRONG = (255, 214, 10), (214, 20, 60)  # colours of saliency
MOST_OPAQUE = 225
# Grey levels of the picture of the core: elsewhere, what the region adds, what the mask adds.
SHADES = (0.2, 0.35, 0.45)
TITLES = {
    "image": "Image",
    "core": "Core: noise outside",
    "spurious": "Spurious: noise on it",
}


def read_examples(evaluations: Sequence[Evaluation]) -> list[Examples | None]:
    """Returns the examples of each evaluation, None where it has none.

    Raises:
      UserError: if a file cannot be read.
    """
    paths = [evaluation.path / FILE_NAME for evaluation in evaluations]
    return [example_file.read(path) if path.exists() else None for path in paths]


def panels(
    evaluations: Sequence[Evaluation], examples: Sequence[Examples | None]
) -> dict[str, Any]:
    """Returns the panels as JSON.

    Models of one preprocessing see the same pictures, which are in the page once.

    Args:
      evaluations: of the page.
      examples: of each evaluation.

    Returns:
      `sets`, of pictures: `labels` of the images, and `views`, name -> data URLs; `models`, by
      evaluation None, or the number of its `set`, `said`: view -> [class, percent] of each image,
      None where the view was not shown, and `saliency`: method -> data URLs; `titles` of views and
      methods.
    """
    keys: list[str] = []
    sets: list[dict[str, Any]] = []
    models: list[dict[str, Any] | None] = []
    for evaluation, found in zip(evaluations, examples, strict=True):
        if found is None or not len(found.id):
            models.append(None)
            continue
        key = repr((_frame(evaluation), found.id.tolist()))
        if key not in keys:
            keys.append(key)
            sets.append(_pictures(found))
        models.append(
            {
                "set": keys.index(key),
                "said": {name: _said(found, name) for name in found.predictions},
                "saliency": {k: [*map(_heat, maps)] for k, maps in found.saliency.items()},
            }
        )
    names = dict.fromkeys(n for s in sets for n in s["views"])
    methods = dict.fromkeys(n for m in models if m for n in m["saliency"])
    return {
        "sets": sets,
        "models": models,
        "titles": {n: TITLES.get(n, title(n)) for n in (*names, *methods)},
    }


def _frame(evaluation: Evaluation) -> list[Any]:
    """Returns what decides which pixels a model sees."""
    preprocessing = evaluation.provenance["preprocessing"]
    keys = ("image_size", "center_crop_share", "interpolation")
    return [preprocessing.get(key) for key in keys]


def _pictures(examples: Examples) -> dict[str, Any]:
    views = {
        name: [
            _jpeg(image) if shown else None
            for image, shown in zip(images, examples.shown[name], strict=True)
        ]
        for name, images in examples.views.items()
    }
    mask, region = (
        values[..., None].astype(np.float32) / 255
        for values in (examples.core_mask, examples.core_region)
    )
    elsewhere, of_region, of_mask = SHADES
    light = elsewhere + of_region * region + of_mask * mask
    core = np.round(examples.views["image"] * light).astype(np.uint8)
    image = views.pop("image")
    return {
        "labels": examples.label.tolist(),
        "views": {"image": image, "core_region": [*map(_jpeg, core)], **views},
    }


def _said(examples: Examples, view: str) -> list[list[float] | None]:
    found = (examples.predictions, examples.probabilities, examples.shown)
    pairs = zip(*(values[view] for values in found), strict=True)
    return [[int(c), round(100 * float(p), 1)] if seen else None for c, p, seen in pairs]


def _jpeg(image: np.ndarray) -> str:
    """Returns uint8 [h, w, 3] as a data URL."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY, optimize=True)
    return _url("image/jpeg", file.getvalue())


def _heat(values: np.ndarray) -> str:
    """Returns saliency, uint8 [h, w], as the data URL of a picture to lay over the image."""
    levels = np.linspace(0, 1, LEVELS)[:, None]
    colours = np.round((1 - levels) * FAINT + levels * STRONG).astype(np.uint8)
    picture = Image.fromarray(np.round(values / 255 * (LEVELS - 1)).astype(np.uint8), "P")
    picture.putpalette(colours.tobytes())
    file = io.BytesIO()
    opacity = bytes(np.round(MOST_OPAQUE * levels[:, 0] ** 0.7).astype(np.uint8))
    picture.save(file, "PNG", optimize=True, transparency=opacity)
    return _url("image/png", file.getvalue())


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

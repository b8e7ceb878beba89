"""Makes the examples of an evaluation: a few images under its protocols, and what a model sees.

Which images, their noise and their partners depend on the data and the evaluation's seed alone, so
that the examples of several models stand side by side.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from corm_jax import example_file
from corm_jax.data import order
from corm_jax.data.dataset import evaluation_loader
from corm_jax.data.pairs import partner_indices
from corm_jax.data.pipeline import Split, identity
from corm_jax.example_file import Examples
from corm_jax.losses.types import Batch
from corm_jax.protocols.saliency import maps
from corm_jax.protocols.views import ablated, core_region, noisy_pair
from corm_jax.steps import expand_batch
from corm_jax.subjects import Subject

NUMBER = 8
SIDE = 160  # pixels, of the pictures that are kept: noise hardly compresses
SALIENCY_SIDE = 28


def choose(labels: np.ndarray, ids: np.ndarray, number: int) -> np.ndarray:
    """Chooses images spread over classes: a function of classes and identities alone.

    One of each class first, then a second, and so on; of more classes than `number`, as many at
    even distances. Of a class those with the smallest identities, which are hashes.

    Args:
      labels: int [N].
      ids: uint32 [N], the images' (`corm_jax.data.pipeline.identity`).
      number: how many at most.

    Returns:
      int64 [at most `number`], places in `labels`, by class.
    """
    classes = np.unique(labels)
    spread = np.linspace(0, len(classes) - 1, min(number, len(classes))).round().astype(int)
    found: list[tuple[int, int, int]] = []  # (turn, class, place)
    for label in classes[spread]:
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(ids[members], kind="stable")][:number]
        found += [(turn, int(label), int(place)) for turn, place in enumerate(members)]
    chosen = sorted(found)[:number]
    return np.array([place for _, _, place in sorted(chosen, key=lambda f: (f[1], f[0]))], np.int64)


def write_examples(directory: Path, subject: Subject, config: ConfigDict, split: Split) -> None:
    """Writes the examples of an evaluation, unless they are there: see `corm_jax.example_file`.

    Args:
      directory: of the evaluation.
      subject: the model.
      config: with `data` and `eval`.
      split: the images; those with a core mask are chosen from.
    """
    path = directory / example_file.FILE_NAME
    if path.exists():
        return
    batch, partner = _load(config, split)
    views, shown, region = _views(batch, partner, config)
    classify, saliency = _functions(subject)
    found = {name: classify(images) for name, images in views.items()}
    example_file.write(
        path,
        Examples(
            id=np.asarray(batch["id"]),
            label=np.asarray(batch["label"]),
            class_names=np.array(split.images.class_names),
            core_mask=_picture(batch["core_mask"][..., 0]),
            core_region=_picture(region[..., 0]),
            views={name: _picture(images) for name, images in views.items()},
            shown=shown,
            predictions={name: np.asarray(classes) for name, (classes, _) in found.items()},
            probabilities={name: np.asarray(p) for name, (_, p) in found.items()},
            saliency=saliency(views["image"], np.asarray(batch["label"])),
        ),
    )


def _load(config: ConfigDict, split: Split) -> tuple[Batch, Batch]:
    """Returns the expanded batches of the chosen images, and of their partners."""
    candidates = np.flatnonzero(split.has_mask)
    ids = np.array([identity(name) for name in split.images.file_names[candidates]], np.uint32)
    chosen = candidates[choose(split.images.labels()[candidates], ids, NUMBER)]
    loader, _ = evaluation_loader(config, split, (0, 1))

    def load(indices: np.ndarray) -> dict[str, np.ndarray]:
        select = order.evaluation_order(indices, batch_size=len(indices))
        return next(replace(loader, select=select, skipped={}).batches(0, 1))

    batch, partner = load(chosen), load(partner_indices(split, config.eval.seed)[chosen])
    fine = (batch["weight"] > 0) & (partner["weight"] > 0)  # could be decoded
    return tuple(
        expand_batch({k: jnp.asarray(v[fine]) for k, v in b.items()}) for b in (batch, partner)
    )


def _views(
    batch: Batch, partner: Batch, config: ConfigDict
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Returns (the views, whether each shows what it is named for, the core region)."""
    region, present = core_region(batch["core_mask"])
    core, spurious = noisy_pair(
        batch, region, seed=config.eval.seed, trial=jnp.asarray(0), sigma=config.eval.sigma
    )
    others, able = ablated(batch, partner, region)
    views = {"image": batch["image"], "core": core, "spurious": spurious, **others}
    shown = {name: (present > 0) & (able.get(name, present) > 0) for name in views}
    shown["image"] = present >= 0
    # Held by no device in particular, so that they go where the model is; one by one, as jax would
    # sort their names.
    fetched = ({k: jax.device_get(v) for k, v in named.items()} for named in (views, shown))
    return *fetched, jax.device_get(region)


def _functions(subject: Subject) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns (images -> their classes and probabilities, (images, labels) -> saliency by name)."""
    model = subject.model

    def classify(variables: Any, images: Any) -> tuple[jax.Array, jax.Array]:
        logits, _ = model.apply(variables, images, train=False)
        return logits.argmax(axis=-1), jax.nn.softmax(logits).max(axis=-1)

    if not subject.is_native:  # neither compiled nor differentiated
        return lambda images: classify(subject.variables, images), lambda images, labels: {}
    compiled, find = jax.jit(classify), jax.jit(partial(maps, model))
    return (
        lambda images: jax.device_get(compiled(subject.variables, images)),
        lambda images, labels: {
            name: _heat(np.asarray(values))
            for name, values in find(subject.variables, images, labels).items()
        },
    )


def _heat(values: np.ndarray) -> np.ndarray:
    """Returns saliency [N, h, w] as uint8 of a side of at most `SALIENCY_SIDE`."""
    small = np.stack([_shrink(v, SALIENCY_SIDE) for v in values.astype(np.float32)])
    largest = small.max(axis=(1, 2), keepdims=True)
    return np.round(255 * small / np.where(largest > 0, largest, 1)).astype(np.uint8)


def _shrink(values: np.ndarray, side: int) -> np.ndarray:
    """Averages float32 [h, w] over areas, down to a side of at most `side`."""
    size = min(side, len(values))
    return np.asarray(Image.fromarray(values).resize((size, size), Image.Resampling.BOX))


def _picture(images: Any) -> np.ndarray:
    """Returns images [N, S, S(, 3)] in [0, 1] as uint8 of a side of at most `SIDE`."""
    pixels = np.round(255 * np.asarray(images)).astype(np.uint8)
    size = min(SIDE, pixels.shape[1])
    if size == pixels.shape[1]:
        return pixels
    return np.stack(
        [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BOX)) for p in pixels]
    )

"""Evaluations of models that are drawn at random, written as `corm_jax.evaluate` writes them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from corm_jax import example_file, statistics
from corm_jax.evaluation_files import save_outcomes
from corm_jax.example_file import Examples
from corm_jax.metrics import Outcome, relative_core_sensitivity
from corm_jax.protocols.ablations import ABLATIONS
from corm_jax.protocols.summary import DEFINITIONS, summarize
from corm_jax.protocols.types import Measured

TRIALS = 10
VIEWS = ("image", "core", "spurious", *ABLATIONS)
ZOO = (
    *("timm:resnet18", "timm:resnet34", "timm:resnet50", "timm:resnet101", "timm:resnet152"),
    *("timm:wide_resnet50_2", "timm:wide_resnet101_2", "timm:resnext50_32x4d"),
    *("timm:resnext101_32x8d", "timm:densenet121", "timm:densenet169", "timm:densenet201"),
    *("timm:vgg11", "timm:vgg16", "timm:vgg19", "timm:inception_v3", "timm:inception_v4"),
    *("timm:mnasnet_100", "timm:mobilenetv2_100", "timm:mobilenetv3_large_100"),
    *("timm:efficientnet_b0", "timm:efficientnet_b1", "timm:efficientnet_b2", "timm:regnety_016"),
    *("timm:convnext_tiny", "timm:convnext_small", "timm:convnext_base", "timm:convnext_large"),
    *("timm:vit_small_patch16_224", "timm:vit_base_patch16_224", "timm:vit_large_patch16_224"),
    *("timm:vit_base_patch32_224", "timm:deit_tiny_patch16_224", "timm:deit_small_patch16_224"),
    *("timm:deit_base_patch16_224", "timm:swin_tiny_patch4_window7_224"),
    *("timm:swin_small_patch4_window7_224", "timm:swin_base_patch4_window7_224"),
    *("open_clip:RN50", "open_clip:ViT-B-32", "open_clip:ViT-B-16", "open_clip:ViT-L-14"),
)


def measured(rng: np.random.Generator, levels: dict[str, float], label: np.ndarray) -> Measured:
    """Outcomes whose accuracies scatter around levels, in classes and in images."""
    outcomes = {}
    ease = rng.normal(0, 0.12, label.max() + 1)[label]
    for name, level in levels.items():
        trials = TRIALS if name in ("core", "spurious") else 1
        number = np.full(len(label), trials, np.float32)
        correct = rng.binomial(trials, np.clip(level + ease, 0.02, 0.98)).astype(np.float32)
        outcomes[name] = Outcome(correct, number)
    if "clean" in outcomes:
        outcomes["with_core"] = outcomes["clean"]
    ids = np.arange(len(label), dtype=np.uint32)
    return Measured(ids, label, np.ones(len(label)), outcomes)


def protocol(found: Measured, *, resampled: bool) -> dict[str, Any]:
    """A protocol's part of results.json; of many classes, with intervals that are a guess."""
    if resampled:
        metrics, spans = summarize(found), statistics.intervals(found)
    else:  # in a fraction of the time
        metrics = {
            name: float(outcome.correct.sum() / outcome.number.sum())
            for name, outcome in found.outcomes.items()
            if name != "with_core"
        }
        if "core" in metrics:
            metrics["rcs"] = float(relative_core_sensitivity(metrics["core"], metrics["spurious"]))
        spans = {
            name: {"images": (value - 0.01, value + 0.01), "classes": (value - 0.03, value + 0.02)}
            for name, value in metrics.items()
        }
    definitions = {name: DEFINITIONS[name] for name in metrics}
    return {"metrics": metrics, "intervals": spans, "definitions": definitions}


def provenance(model: str, images: int, **changes: Any) -> dict[str, dict[str, Any]]:
    found = {
        "model": {"name": model, "weights": "sha256:" + hashlib.sha256(model.encode()).hexdigest()},
        "preprocessing": {
            "image_size": 224,
            "center_crop_share": 0.875,
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "data": {
            "name": "imagenet2012",
            "split": "validation",
            "images": images,
            "sha256": "a" * 64,
        },
        "masks": {"images": images, "sha256": "b" * 64},
        "noise": {"sigma": 0.25, "trials": TRIALS, "seed": 0},
        "versions": {"corm_jax": "0.1.0", "jax": "0.10.2"},
    }
    for key, value in changes.items():
        group, _, name = key.partition("__")
        found[group][name] = value
    return found


def examples(
    rng: np.random.Generator, names: list[str], count: int, side: int, saliency: bool
) -> Examples:
    label = (np.arange(count) * max(1, len(names) // count) % len(names)).astype(np.int32)
    rows, columns = np.mgrid[:side, :side] / side
    distance = np.hypot(rows - 0.5, columns - 0.5)
    mask = np.tile((distance < 0.25) * 255, (count, 1, 1)).astype(np.uint8)
    tints = np.random.default_rng(0).uniform(0, 1, (count, 3))
    base = 255 * (0.3 + 0.5 * tints[:, None, None] * (1 - distance[None, ..., None]))
    noise = rng.normal(0, 40, (count, side, side, 3)) * (distance > 0.3)[None, ..., None]
    views = dict.fromkeys(VIEWS, base.astype(np.uint8))
    views["core"] = np.clip(base + noise, 0, 255).astype(np.uint8)
    heat = np.exp(-20 * np.hypot(*(np.mgrid[:14, :14] / 14 - 0.5)) ** 2) * 255
    return Examples(
        id=np.arange(count, dtype=np.uint32),
        label=label,
        class_names=np.array(names),
        core_mask=mask,
        core_region=np.maximum(mask, ((distance < 0.35) * 128).astype(np.uint8)),
        views=views,
        shown={n: (np.arange(count) != 1) | (n != "swapped_background") for n in VIEWS},
        predictions={
            n: np.where(rng.random(count) < 0.7, label, 0).astype(np.int32) for n in VIEWS
        },
        probabilities={n: rng.uniform(0.2, 1, count).astype(np.float32) for n in VIEWS},
        saliency={"grad_cam": np.tile(heat, (count, 1, 1)).astype(np.uint8)} if saliency else {},
    )


def write_evaluation(
    directory: Path,
    model: str,
    *,
    names: list[str],
    per_class: int = 6,
    seed: int = 0,
    levels: dict[str, dict[str, float]] | None = None,
    curves: bool = False,
    resampled: bool = True,
    pictures: int = 0,
    side: int = 24,
    saliency: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Writes an evaluation; returns its results.

    Args:
      directory: of it.
      model: its name.
      names: of the classes.
      per_class: images.
      seed: of everything drawn.
      levels: protocol -> outcome -> accuracy to scatter around; some that depend on the seed by
        default.
      curves: whether there is a protocol with sigma curves.
      resampled: whether intervals are a bootstrap's.
      pictures: number of examples.
      side: of them in pixels.
      saliency: whether they have it.
      changes: of the provenance, "group__key".
    """
    rng = np.random.default_rng((3, seed))
    clean = rng.uniform(0.65, 0.88)
    core, spurious = clean - rng.uniform(0.1, 0.3), clean - rng.uniform(0.05, 0.35)
    levels = levels or {
        "complement": {"clean": clean, "core": core, "spurious": spurious},
        "ablations": {
            "swapped_background": clean - rng.uniform(0.05, 0.2),
            "grey_background": clean - rng.uniform(0, 0.1),
            "grey_object": rng.uniform(0.05, 0.3),
        },
    }
    label = np.repeat(np.arange(len(names), dtype=np.int32), per_class)
    directory.mkdir(parents=True)
    results = {"provenance": provenance(model, len(label), **changes), "protocols": {}}
    for name, of_protocol in levels.items():
        found = measured(rng, of_protocol, label)
        save_outcomes(directory / f"{name}.npz", found)
        results["protocols"][name] = protocol(found, resampled=resampled)
    if curves:
        sigma = [0.0, 0.1, 0.25, 0.5, 1.0]
        results["protocols"]["sigma_curve"] = {
            "metrics": {"core_area": core * 0.8, "spurious_area": spurious * 0.7},
            "intervals": {},
            "definitions": {
                "core_area": "mean of core accuracy over noise of 0 to 1: the area under its curve",
                "spurious_area": "the same of spurious accuracy",
            },
            "curves": {
                name: {"sigma": sigma, "accuracy": [clean * np.exp(-k * s) for s in sigma]}
                for name, k in (("core", 0.5 + rng.random()), ("spurious", 1 + rng.random()))
            },
        }
    (directory / "results.json").write_text(json.dumps(results))
    if pictures:
        example_file.write(
            directory / "examples.npz", examples(rng, names, pictures, side, saliency)
        )
    return results


def write_zoo(
    parent: Path, *, classes: int, per_class: int, pictures: int, side: int
) -> list[Path]:
    """Writes evaluations of 42 models."""
    names = [f"class {n} with a name, of usual length" for n in range(classes)]
    paths = []
    for seed, model in enumerate(ZOO):
        paths.append(parent / model.rpartition(":")[2])
        write_evaluation(
            paths[-1],
            model,
            names=names,
            per_class=per_class,
            seed=seed,
            curves=seed % 5 != 3,
            resampled=False,
            pictures=pictures,
            side=side,
            saliency=not model.startswith("open_clip"),
        )
    return paths

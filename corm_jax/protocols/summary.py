"""From the outcomes of images to metrics: one table, for values and their resampled intervals.

A metric is a function of the outcomes' sums over each class, so that whatever is drawn (images,
classes, nothing) goes the same way.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from corm_jax.masks.checks import KINDS
from corm_jax.metrics import ClassAccuracy, Outcome, relative_core_sensitivity
from corm_jax.protocols.ablations import ABLATIONS
from corm_jax.protocols.noise import BOX_SIGMAS, CURVE_SIGMAS
from corm_jax.protocols.saliency import METHODS
from corm_jax.protocols.types import Measured

CALIBRATION_BINS = 15


class Sums(NamedTuple):
    """An outcome's sums over the images of each class.

    Attributes:
      correct: float64 [C, ...], weighted number of correct predictions.
      number: float64 [C, ...], weighted number of predictions.
    """

    correct: np.ndarray
    number: np.ndarray


class Metric(NamedTuple):
    """A metric.

    Attributes:
      definition: in words.
      outcomes: that it is made of; it is reported where all of them were measured on something.
      compute: their sums -> float64 [...].
      kind: "share" in [0, 1], "score" of another range, or "count".
      has_interval: whether resampling tells how sure it is; an extreme, or a sum of absolute
        values, is biased under resampling.
    """

    definition: str
    outcomes: tuple[str, ...]
    compute: Callable[..., np.ndarray]
    kind: str = "share"
    has_interval: bool = True


def balanced(sums: Sums) -> np.ndarray:
    """Returns the mean over classes of their accuracies; classes without images are left out."""
    accuracy, present = _by_class(sums)
    return _ratio(np.where(present, accuracy, 0.0).sum(axis=0), present.sum(axis=0))


def plain(sums: Sums) -> np.ndarray:
    """Returns the accuracy over all images, whatever their class."""
    return _ratio(sums.correct.sum(axis=0), sums.number.sum(axis=0))


def worst(sums: Sums) -> np.ndarray:
    """Returns the accuracy of the class that has the lowest; of those with images."""
    accuracy, present = _by_class(sums)
    lowest = np.where(present, accuracy, np.inf).min(axis=0)
    return np.where(np.isinf(lowest), np.nan, lowest)


def number(sums: Sums) -> np.ndarray:
    """Returns the weighted number of predictions."""
    return sums.number.sum(axis=0)


def sensitivity(core: Sums, spurious: Sums) -> np.ndarray:
    """Returns `corm_jax.metrics.relative_core_sensitivity` of two accuracies."""
    return relative_core_sensitivity(balanced(core), balanced(spurious))


def gap(most: Sums, least: Sums) -> np.ndarray:
    """Returns the difference of two accuracies."""
    return balanced(most) - balanced(least)


def calibration_error(*bins: Sums) -> np.ndarray:
    """Returns sum_b |sum over the bin's images of (correct - confidence)| / images."""
    off = sum(np.abs(each.correct.sum(axis=0)) for each in bins)
    return _ratio(off, bins[0].number.sum(axis=0))


def area(*points: Sums) -> np.ndarray:
    """Returns the mean height of an accuracy over `CURVE_SIGMAS`, by the trapezoidal rule."""
    heights = np.stack([balanced(point) for point in points])
    widths = np.diff(CURVE_SIGMAS)
    return np.tensordot(widths / widths.sum(), (heights[1:] + heights[:-1]) / 2, axes=1)


def _by_class(sums: Sums) -> tuple[np.ndarray, np.ndarray]:
    return _ratio(*sums), sums.number > 0


def _ratio(correct: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Returns correct / number; NaN where the number is 0."""
    correct, number = np.asarray(correct, np.float64), np.asarray(number, np.float64)
    return np.divide(correct, number, out=np.full(correct.shape, np.nan), where=number > 0)


def _accuracy(name: str, where: str) -> dict[str, Metric]:
    return {name: Metric(f"accuracy {where}, mean over classes", (name,), balanced)}


def _count(definition: str, outcome: str) -> Metric:
    return Metric(definition, (outcome,), number, "count", has_interval=False)


def _worst(name: str) -> Metric:
    definition = f"{name} accuracy of the class where it is lowest"
    return Metric(definition, (name,), worst, has_interval=False)


def _pair(core: str, spurious: str, rcs: str, how: tuple[str, str]) -> dict[str, Metric]:
    """Returns two accuracies and their relative sensitivity."""
    definition = f"({core} - {spurious}) / (2 min(a, 1 - a)), a = ({core} + {spurious}) / 2"
    return {
        **_accuracy(core, how[0]),
        **_accuracy(spurious, how[1]),
        rcs: Metric(definition, (core, spurious), sensitivity, "score"),
    }


def _single(name: str, kind: str) -> dict[str, Metric]:
    """Returns the metrics of noise on one feature of a kind at a time."""
    where = f"under noise on one {kind} feature alone, mean over an image's features, its class's "
    return {
        name: Metric(f"accuracy {where}images, and classes", (name,), balanced),
        f"{name}_drop": Metric(
            f"accuracy without noise on the same images, mean over classes, less {name}",
            (f"{name}_clean", name),
            gap,
            "score",
        ),
        f"images_{name}": _count(f"images that `{name}` is measured on", name),
    }


def curve_outcomes(name: str) -> tuple[str, ...]:
    """Returns the outcomes of a sigma curve, "core" or "spurious", in the order of its sigmas."""
    return tuple(f"{name}_{sigma:g}" for sigma in CURVE_SIGMAS)


_BINS = tuple(f"calibration_{place}" for place in range(CALIBRATION_BINS))
_SHOWN = {
    "swapped_background": "with all but the core region swapped for the background of an image of "
    "another class, the same for every model",
    "grey_background": "with all but the core region grey",
    "blurred_background": "with all but the core region blurred",
    "grey_object": "with the core region grey (lower is better, chance is 1 over the number of "
    "classes)",
    "grey_box": "with the core region's bounding box grey (lower is better)",
    "tiled_object": "with the core region's bounding box tiled over with the largest strip of the "
    "image beside it (lower is better)",
}
_SCORES = {
    "iou": "intersection over union of the map, where it is at least half of its maximum, and the "
    "core mask",
    "energy_inside": "share of the map's sum on the core mask",
    "delta_density": "the map's mean on the core mask less its mean outside",
    "average_precision": "average precision of the map as a score of pixels on the core mask",
}
_MAPS = {
    "grad_cam": "Grad-CAM",
    "hires_cam": "HiResCAM",
    "input_gradient": "absolute input gradient",
}

METRICS: dict[str, Metric] = {
    **_accuracy("clean", "on the images as they are"),
    "clean_plain": Metric(
        "accuracy on the images as they are, mean over images", ("clean",), plain
    ),
    "worst_class": _worst("clean"),
    "ece": Metric(
        f"expected calibration error of the images as they are, {CALIBRATION_BINS} equal bins of "
        "confidence (Guo et al. 2017): lower is better",
        _BINS,
        calibration_error,
        has_interval=False,
    ),
    "images": _count("images that `clean` is measured on", "clean"),
    **_pair(
        *("core", "spurious", "rcs"),
        (
            "under noise outside the core region, over all trials",
            "under noise on the core region, over all trials",
        ),
    ),
    "worst_class_core": _worst("core"),
    "images_with_core": _count(
        "images with a core mask, which all but `clean` is measured on", "with_core"
    ),
    **{k: v for name in ABLATIONS for k, v in _accuracy(name, _SHOWN[name]).items()},
    "images_swapped": _count(
        "images with a core mask and a partner of another class, which `swapped_background` is "
        "measured on",
        "swapped_background",
    ),
    **_pair(
        *("annotated_core", "annotated_spurious", "annotated_rcs"),
        ("under noise on the spurious features", "under noise on the core features"),
    ),
    **_pair(
        *("normalized_core", "normalized_spurious", "normalized_rcs"),
        (
            "under noise on the spurious features, after the input normaliser, not clipped",
            "under noise on the core features, after the input normaliser, not clipped",
        ),
    ),
    **{
        key: metric
        for sigma in BOX_SIGMAS
        for key, metric in _pair(
            *(f"box_core_{sigma:g}", f"box_spurious_{sigma:g}", f"box_rcs_{sigma:g}"),
            (
                f"under noise of {sigma:g} outside the core region's box, not clipped",
                f"under noise of {sigma:g} in the core region's box, not clipped",
            ),
        ).items()
    },
    **_pair(
        *("background_noise", "foreground_noise", "rfs"),
        ("under noise outside the core mask", "under noise on the core mask"),
    ),
    **_pair(
        *("background_noise_l2", "foreground_noise_l2", "rfs_l2"),
        (
            "under noise outside the core mask, of one L2 norm for all images",
            "under noise on the core mask, of the same L2 norm",
        ),
    ),
    **{
        f"{name}_area": Metric(
            f"mean of {name} accuracy over noise of 0 to {CURVE_SIGMAS[-1]:g}: the area under its "
            "curve",
            curve_outcomes(name),
            area,
        )
        for name in ("core", "spurious")
    },
    **_pair(
        *("random_core", "random_spurious", "random_rcs"),
        (
            "under noise outside a region of the core region's area and shape at random places",
            "under noise on a region of the core region's area and shape at random places",
        ),
    ),
    **_pair(
        *("whole_core", "whole_spurious", "whole_rcs"),
        (
            "under noise on the whole image, of the energy that core accuracy's has",
            "under noise on the whole image, of the energy that spurious accuracy's has",
        ),
    ),
    **_accuracy("most_spurious", "on the images of a class that show its spurious features most"),
    **_accuracy("least_spurious", "on the images of a class that show its spurious features least"),
    "spurious_gap": Metric(
        "most_spurious - least_spurious: near 0 is better",
        ("most_spurious", "least_spurious"),
        gap,
        "score",
    ),
    **{key: metric for kind in KINDS for key, metric in _single(f"single_{kind}", kind).items()},
    **{
        f"{method}_{score}": Metric(
            f"{_MAPS[method]} of the class: {text}; mean over classes",
            (f"{method}_{score}",),
            balanced,
            "score",
        )
        for method in METHODS
        for score, text in _SCORES.items()
    },
}
DEFINITIONS = {name: metric.definition for name, metric in METRICS.items()}


def extra_definitions(name: str, classes: int) -> dict[str, str]:
    """Returns the definitions of the metrics of a set that clean accuracy alone is measured on.

    Args:
      name: "counterfactual" or a TFDS data set.
      classes: how many classes occur in it.
    """
    where = f"the test split of {name}"
    if name == "counterfactual":
        where = "images whose backgrounds are independent of the class"
    accuracy = f"accuracy on {where}, predictions among the {classes} classes that occur there"
    return {
        name: f"{accuracy}, mean over classes",
        f"{name}_plain": f"{accuracy}, mean over images",
    }


def with_calibration(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Returns outcomes, with those of the calibration bins where there is a confidence.

    A bin's outcome is (correct - confidence) where the confidence is in (b / n, (b + 1) / n], 0
    elsewhere, of all images.
    """
    outcomes = dict(outcomes)
    if {"clean", "confidence"} <= outcomes.keys():
        clean, confidence = outcomes["clean"], outcomes["confidence"]
        weight = np.asarray(clean.number, np.float64)
        correct = np.asarray(clean.correct, np.float64)
        sure = np.asarray(confidence.correct, np.float64)
        place = np.ceil(_ratio(sure, weight) * CALIBRATION_BINS) - 1
        place = np.clip(np.nan_to_num(place), 0, CALIBRATION_BINS - 1)
        for number, name in enumerate(_BINS):
            outcomes[name] = Outcome((correct - sure) * (place == number), weight)
    return outcomes


def summarize(measured: Measured) -> dict[str, float]:
    """Returns the metrics of `METRICS` that were measured.

    What is measured on no image is left out: all but `clean` without masks, a swap where all
    images are of one class.
    """
    return {name: float(value) for name, value in metrics(_sums(measured)).items()}


def _sums(measured: Measured) -> dict[str, Sums]:
    classes = int(measured.label.max(initial=0)) + 1
    totals = {
        name: ClassAccuracy.from_model_output(
            outcome=outcome, label=measured.label, num_classes=classes
        )
        for name, outcome in with_calibration(measured.outcomes).items()
    }
    return {
        name: Sums(np.asarray(total.correct, np.float64), np.asarray(total.count, np.float64))
        for name, total in totals.items()
    }


def metrics(sums: Mapping[str, Sums]) -> dict[str, Any]:
    """Returns each metric of `METRICS` that these sums give, float64 [...]."""
    return {
        name: metric.compute(*(sums[outcome] for outcome in metric.outcomes))
        for name, metric in METRICS.items()
        if all(outcome in sums for outcome in metric.outcomes)
        and (metric.kind == "count" or all(sums[o].number.any() for o in metric.outcomes))
    }


def curves(measured: Measured) -> dict[str, dict[str, list[float]]]:
    """Returns "core" and "spurious" -> {"sigma", "accuracy"} of a sigma curve, {} without one."""
    sums = _sums(measured)
    return {
        name: {
            "sigma": list(CURVE_SIGMAS),
            "accuracy": [float(balanced(sums[point])) for point in curve_outcomes(name)],
        }
        for name in ("core", "spurious")
        if set(curve_outcomes(name)) <= sums.keys()
    }

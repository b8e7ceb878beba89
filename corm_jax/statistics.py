"""How sure an accuracy is: bootstrap intervals of an evaluation, and of the difference of two.

Percentile intervals (Efron and Tibshirani 1993, chapter 13). Over images: those of each class are
drawn with replacement, as many as there are; the classes stay. Over classes: whole classes are
drawn; the accuracy of each stays. Draws depend on the seed, the class and the images alone, so that
two models on the same images are resampled alike, and their differences are paired.
"""

from collections.abc import Mapping

import numpy as np

from corm_jax.errors import UserError
from corm_jax.metrics import Outcome, relative_core_sensitivity
from corm_jax.protocols import ACCURACIES, Measured

RESAMPLES = 1000
LEVELS = (2.5, 97.5)  # percentiles: 95 % intervals
SEED = 0
# Where RCS is near saturation: it moves by this difference of accuracies over 2 min(a, 1 - a), so
# that one point is worth more than ten.
SATURATION = 0.05

Interval = tuple[float, float]
Samples = Mapping[str, np.ndarray]


def intervals(measured: Measured) -> dict[str, dict[str, Interval]]:
    """Returns metric -> {"images": its 95 % interval over images, "classes": over classes}."""
    found: dict[str, dict[str, Interval]] = {}
    for over, resample in RESAMPLE.items():
        for name, samples in resample(measured).items():
            found.setdefault(name, {})[over] = _interval(samples)
    return found


def differences(first: Measured, second: Measured) -> dict[str, dict[str, Interval]]:
    """Returns the intervals of paired differences, the second's metrics less the first's.

    Raises:
      UserError: if they are not of the same images.
    """
    if not (
        np.array_equal(np.sort(first.id), np.sort(second.id)) and len(first.id) == len(second.id)
    ):
        raise UserError("the evaluations are not of the same images, so they cannot be paired")
    found: dict[str, dict[str, Interval]] = {}
    for over, resample in RESAMPLE.items():
        before, after = resample(first), resample(second)
        for name in (name for name in before if name in after):
            found.setdefault(name, {})[over] = _interval(after[name] - before[name])
    return found


def is_saturated(core: float, spurious: float) -> bool:
    """Returns whether RCS is near saturation, where it says little; see `SATURATION`."""
    mean = (core + spurious) / 2
    return min(mean, 1 - mean) < SATURATION


def _over_images(measured: Measured) -> Samples:
    order = np.argsort(measured.id, kind="stable")
    labels = measured.label[order]
    sums: dict[str, list[np.ndarray]] = {}
    for label in np.unique(labels):
        members = order[labels == label]
        rng = np.random.default_rng((SEED, int(label)))
        drawn = members[rng.integers(len(members), size=(RESAMPLES, len(members)))]
        for name in _names(measured):
            outcome = measured.outcomes[name]
            correct, number = (values[drawn].sum(axis=1) for values in _pair(outcome))
            sums.setdefault(name, []).append(_ratio(correct, number))
    return _metrics({name: np.stack(classes) for name, classes in sums.items()})


def _over_classes(measured: Measured) -> Samples:
    labels = np.unique(measured.label)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(len(labels), size=(RESAMPLES, len(labels))).T
    accuracies = {}
    for name in _names(measured):
        pair = _pair(measured.outcomes[name])
        of_class = [[v[measured.label == label].sum() for v in pair] for label in labels]
        accuracies[name] = _ratio(*np.array(of_class).T)[drawn]
    return _metrics(accuracies)


RESAMPLE = {"images": _over_images, "classes": _over_classes}


def _names(measured: Measured) -> list[str]:
    return [name for name in ACCURACIES if name in measured.outcomes]


def _pair(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(outcome.correct, np.float64), np.asarray(outcome.number, np.float64)


def _ratio(correct: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Returns accuracies; NaN where nothing was predicted."""
    return np.where(number > 0, correct / np.maximum(number, 1), np.nan)


def _metrics(accuracies: Mapping[str, np.ndarray]) -> Samples:
    """Returns the class-balanced metrics [R] of accuracies [C, R]; NaN where nothing was drawn."""
    found = {}
    for name, values in accuracies.items():
        present = ~np.isnan(values)
        if present.any():
            found[name] = _ratio(np.where(present, values, 0).sum(axis=0), present.sum(axis=0))
    if {"core", "spurious"} <= found.keys():
        pairs = zip(found["core"], found["spurious"], strict=True)
        found["rcs"] = np.array([relative_core_sensitivity(*pair) for pair in pairs])
    return found


def _interval(samples: np.ndarray) -> Interval:
    low, high = np.nanpercentile(samples, LEVELS)  # of resamples that drew anything
    return float(low), float(high)

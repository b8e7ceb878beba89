"""How sure an accuracy is: bootstrap intervals of an evaluation, and of the difference of two.

Percentile intervals (Efron and Tibshirani 1993, chapter 13). Over images: those of each class are
drawn with replacement, as many as there are; the classes stay. Over classes: whole classes are
drawn; the accuracy of each stays. Draws depend on the seed, the class and the images alone, so that
two models on the same images are resampled alike, and their differences are paired.
"""

from collections.abc import Mapping

import numpy as np

from corm_jax.errors import UserError
from corm_jax.protocols.summary import METRICS, Sums, metrics, with_calibration
from corm_jax.protocols.types import Measured

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
    sums: dict[str, list[list[np.ndarray]]] = {}
    outcomes = _needed(measured)
    for label in np.unique(labels):
        members = order[labels == label]
        rng = np.random.default_rng((SEED, int(label)))
        drawn = members[rng.integers(len(members), size=(RESAMPLES, len(members)))]
        for name, pair in outcomes.items():
            sums.setdefault(name, []).append([values[drawn].sum(axis=1) for values in pair])
    return _metrics({name: np.stack(classes, axis=1) for name, classes in sums.items()})


def _over_classes(measured: Measured) -> Samples:
    labels = np.unique(measured.label)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(len(labels), size=(RESAMPLES, len(labels))).T
    sums = {}
    for name, pair in _needed(measured).items():
        of_class = [[values[measured.label == label].sum() for values in pair] for label in labels]
        sums[name] = np.array(of_class).T[:, drawn]
    return _metrics(sums)


RESAMPLE = {"images": _over_images, "classes": _over_classes}


def _needed(measured: Measured) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns (correct, number) of the outcomes that metrics are made of, float64 [N] each."""
    needed = {name for metric in METRICS.values() for name in metric.outcomes}
    return {
        name: (np.asarray(outcome.correct, np.float64), np.asarray(outcome.number, np.float64))
        for name, outcome in with_calibration(measured.outcomes).items()
        if name in needed
    }


def _metrics(sums: Mapping[str, np.ndarray]) -> Samples:
    """Returns the metrics [R] of sums [2, C, R]; NaN where nothing was drawn."""
    found = metrics({name: Sums(*pair) for name, pair in sums.items()})
    return {name: values for name, values in found.items() if METRICS[name].has_interval}


def _interval(samples: np.ndarray) -> Interval:
    low, high = np.nanpercentile(samples, LEVELS)  # of resamples that drew anything
    return float(low), float(high)

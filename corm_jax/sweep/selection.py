"""From runs to arms: means and standard errors, the selected arm, the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from corm_jax.sweep.config import BEST, Arm


class Summary(NamedTuple):
    """An arm over its seeds.

    Attributes:
      arm: which.
      finished: how many of its runs are finished.
      complete: whether all are.
      means: column -> (mean, its standard error: NaN for one run), over the finished runs.
    """

    arm: Arm
    finished: int
    complete: bool
    means: dict[str, tuple[float, float]]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error (NaN for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def summarize(arm: Arm, rows: Sequence[Mapping[str, Any] | None]) -> Summary:
    """Summarizes the runs of an arm.

    Args:
      arm: which.
      rows: of each run its numbers by column, or None where it is not finished.
    """
    finished = [row for row in rows if row is not None]
    columns = dict.fromkeys(key for row in finished for key in row)
    means = {key: mean_and_error([row[key] for row in finished if key in row]) for key in columns}
    return Summary(arm, len(finished), len(finished) == len(rows), means)


def select(summaries: Sequence[Summary], rule: ConfigDict) -> tuple[str, str]:
    """Selects an arm by the declared rule.

    Only arms whose runs are all finished, and whose numbers are numbers, take part. Of equal arms
    the one of higher clean accuracy is selected, then the first of the grid.

    Args:
      summaries: in the grid's order.
      rule: see `corm_jax.sweep.config.sweep_config`.

    Returns:
      (the arm's name or "", why there is none).
    """
    prefix = "selection_" if rule.split == "selection" else ""

    def value(summary: Summary, metric: str) -> float:
        return summary.means.get(prefix + metric, (math.nan, math.nan))[0]

    candidates = [
        s
        for s in summaries
        if s.complete and math.isfinite(value(s, "clean")) and math.isfinite(value(s, rule.metric))
    ]
    references = [s for s in candidates if rule.of in (BEST, s.arm.name)]
    if not references:
        which = "no arm" if rule.of == BEST else f"arm {rule.of} is not one that"
        return "", f"{which} has finished all its runs with a clean and a {rule.metric} accuracy"
    # A billionth for the rounding of sums.
    least = max(value(s, "clean") for s in references) - rule.clean_within - 1e-9
    allowed = [s for s in candidates if value(s, "clean") >= least]
    best = max(allowed, key=lambda s: (value(s, rule.metric), value(s, "clean")))
    return best.arm.name, ""


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Returns the names of points that no other one dominates, by rising first coordinate.

    A point dominates another if it is at least as high in both coordinates and higher in one.
    Points with a NaN are left out.
    """
    finite = {name: p for name, p in points.items() if all(map(math.isfinite, p))}

    def dominated(point: tuple[float, float]) -> bool:
        return any(
            other != point and other[0] >= point[0] and other[1] >= point[1]
            for other in finite.values()
        )

    return sorted((n for n, p in finite.items() if not dominated(p)), key=lambda n: finite[n])

"""Accuracies by class, from the outcomes of every image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from corm_jax.errors import UserError
from corm_jax.evaluation_files import read_outcomes
from corm_jax.html_report.columns import title
from corm_jax.html_report.evaluations import Evaluation

OUTCOMES = (*("clean", "core", "swapped_background", "spurious", "grey_background", "grey_object"),)
PER_MILLE = 1000  # a figure of four bytes or less in the page: it shows tenths of a percent


def by_class(evaluations: Sequence[Evaluation], names: Sequence[str] | None) -> dict[str, Any]:
    """Returns accuracies by class as JSON.

    Args:
      evaluations: of the page.
      names: of the classes, in the order of the labels; None if unknown.

    Returns:
      `labels`, those that occur; `names` of them; `images`, how many there are of each; `outcomes`,
      the names and titles of what was measured; `models`, by evaluation and outcome: per mille of
      each class, None where nothing was measured, or None for the whole outcome.

    Raises:
      UserError: if outcomes cannot be read, or there are more classes than names.
    """
    measured = [_counts(evaluation) for evaluation in evaluations]
    found = [name for name in OUTCOMES if any(name in counts for counts in measured)]
    size = max((len(number) for m in measured for _, number in m.values()), default=0)
    images = np.zeros(size, np.int64)
    for counts in measured:
        if "clean" in counts:
            number = counts["clean"][1]
            images[: len(number)] = np.maximum(images[: len(number)], number)
    labels = np.flatnonzero(images)
    if names is not None and labels.size and labels[-1] >= len(names):
        raise UserError(
            f"{evaluations[0].path} has class {labels[-1]} of {len(names)}; evaluate again"
        )
    return {
        "labels": labels.tolist(),
        "names": [str(names[n]) if names is not None else f"class {n}" for n in labels],
        "images": images[labels].tolist(),
        "outcomes": [{"name": name, "title": title(name)} for name in found],
        "models": [[_shares(m.get(name), labels) for name in found] for m in measured],
    }


def _counts(evaluation: Evaluation) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns (correct, number) of each class by the name of the outcome, of one that has files."""
    counts = {}
    for protocol in dict.fromkeys(protocol for protocol, _ in evaluation.metrics):
        path = evaluation.path / f"{protocol}.npz"
        if not path.exists():  # a run has none
            continue
        measured = read_outcomes(path)
        for name in set(OUTCOMES) & measured.outcomes.keys():
            outcome = measured.outcomes[name]
            counts[name] = tuple(
                np.bincount(measured.label, weights=values)
                for values in (outcome.correct, outcome.number)
            )
    return counts


def _shares(
    counts: tuple[np.ndarray, np.ndarray] | None, labels: np.ndarray
) -> list[int | None] | None:
    if counts is None:
        return None
    size = int(labels.max(initial=-1)) + 1
    correct, number = (np.pad(c, (0, max(0, size - len(c))))[labels] for c in counts)
    return [
        round(PER_MILLE * right / count) if count else None
        for right, count in zip(correct.tolist(), number.tolist(), strict=True)
    ]

"""What a sweep writes: sweep.csv (runs), summary.csv and table.md (arms)."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from corm_jax.files import read_json, replacing
from corm_jax.sweep.config import BEST, Run
from corm_jax.sweep.selection import Summary, summarize

FINISHED, WAITING = "finished", "waiting"
# Not in the table: what says how something was measured, and the same over images.
UNLISTED = ("images", "images_with_core", "images_swapped")
UNITS = {"rcs": (1.0, 2), "train_seconds": (1.0, 0)}  # factor, digits; others are percentages
PERCENT = (100.0, 1)


def numbers(run: Run) -> dict[str, float]:
    """Returns a finished run's metrics, those of its selection split, and its time, by column."""
    results = read_json(run.workdir / "results.json")
    selection = {f"selection_{name}": value for name, value in results["selection"].items()}
    return {**results["metrics"], **selection, "train_seconds": results["train_seconds"]}


def is_finished(run: Run) -> bool:
    """Returns whether a run has its results."""
    return (run.workdir / "results.json").is_file()


def summaries(runs: Sequence[Run]) -> list[Summary]:
    """Returns the arms of all runs, in the grid's order."""
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        by_arm.setdefault(run.arm.name, []).append(run)
    return [
        summarize(group[0].arm, [numbers(run) if is_finished(run) else None for run in group])
        for group in by_arm.values()
    ]


def write_runs(path: Path, runs: Sequence[Run], errors: Mapping[Path, str]) -> None:
    """Writes one row a run.

    Args:
      path: CSV file.
      runs: all of them.
      errors: workdir -> what went wrong there.
    """
    rows = []
    for run in runs:
        finished = is_finished(run)
        status = FINISHED if finished else errors.get(run.workdir, WAITING)
        row = {
            "arm": run.arm.name,
            "objective": run.arm.objective,
            "control": run.config.control,
            "overrides": " ".join(f"{key}={value}" for key, value in run.arm.overrides.items()),
            "seed": run.seed,
            "status": status,
        }
        rows.append({**row, **(numbers(run) if finished else {}), "workdir": str(run.workdir)})
    _write_csv(path, rows)


def write_summary(path: Path, found: Sequence[Summary], selected: str) -> None:
    """Writes one row an arm: for each column its mean and standard error over finished runs."""
    rows = []
    for summary in found:
        arm = summary.arm
        row: dict[str, Any] = {"arm": arm.name, "objective": arm.objective, "control": arm.control}
        row |= {"runs": summary.finished, "selected": "yes" if arm.name == selected else ""}
        for column, (mean, error) in summary.means.items():
            row |= {column: mean, f"{column}_error": error}
        rows.append(row)
    _write_csv(path, rows)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def table(config: ConfigDict, found: Sequence[Summary], selected: str) -> str:
    """Returns the arms as a Markdown table, with what it shows in a line above."""
    columns = dict.fromkeys(key for summary in found for key in summary.means)
    shown = [c for c in columns if _is_listed(c)]
    lines = [["arm", "runs", *(c.replace("_", " ") for c in shown)]]
    for summary in found:
        name = summary.arm.name
        cells = [_cell(c, *summary.means[c]) if c in summary.means else "" for c in shown]
        lines.append([f"**{name}**" if name == selected else name, str(summary.finished), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    padded.insert(1, ["-" * width for width in widths])
    rows = ["| " + " | ".join(line) + " |" for line in padded]
    return "\n".join([caption(config), "", *rows]) + "\n"


def caption(config: ConfigDict) -> str:
    """Returns what the numbers of a table are, and by which rule its bold arm is selected."""
    rule = config.select
    reference = "the best arm's" if rule.of == BEST else f"{rule.of}'s"
    where = "on training images set aside"
    if rule.split == "validation":
        where = "on the validation images, so that its numbers are optimistic"
    return (
        f"Validation accuracies in %, mean ± standard error over {len(config.seeds)} seeds. "
        f"Bold: the highest {rule.metric} among arms whose clean accuracy is at most "
        f"{100 * rule.clean_within:g} points below {reference}, selected {where}."
    )


def _is_listed(column: str) -> bool:
    hidden = column in UNLISTED or column.endswith("_plain") or column.startswith("selection_")
    return not hidden


def _cell(column: str, mean: float, error: float) -> str:
    factor, digits = UNITS.get(column, PERCENT)
    shown = f"{factor * mean:.{digits}f}"
    return shown if math.isnan(error) else f"{shown} ± {factor * error:.{digits}f}"

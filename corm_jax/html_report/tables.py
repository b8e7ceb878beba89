"""The ranking table, and the choice of its columns."""

import re
from collections.abc import Sequence
from html import escape

from corm_jax.html_report.columns import (
    Column,
    protocol_title,
    ranking_column,
    saturated,
)
from corm_jax.html_report.evaluations import OVER, Evaluation
from corm_jax.html_report.series import Series, symbol


def ranking(
    evaluations: Sequence[Evaluation],
    columns: Sequence[Column],
    series: Sequence[Series],
    series_of: Sequence[int],
) -> str:
    """Returns the table of all models, sorted by `corm_jax.html_report.columns.ranking_column`.

    A row's `data-row` is the evaluation's number, a cell's `data-column` the column's; `data-value`
    is what to sort by, missing where nothing was measured.

    Args:
      evaluations: of the page.
      columns: of the page.
      series: of the page.
      series_of: the number of each evaluation's.
    """
    first = ranking_column(columns, evaluations)
    sign = 1 if first.lower_is_better else -1

    def key(number: int) -> tuple[bool, float]:
        metric = first.of(evaluations[number])
        return metric is None, sign * metric.value if metric else 0.0

    order = sorted(range(len(evaluations)), key=key)
    heads = "".join(_head(n, column, column is first) for n, column in enumerate(columns))
    rows = "".join(
        _row(n, evaluations[n], columns, series_of[n], series[series_of[n]]) for n in order
    )
    return (
        '<table id="ranking" class="over-images"><caption class="unseen">Models and their metrics; '
        "the buttons in the head sort.</caption>"
        '<thead><tr><th scope="col" class="rank"><span class="unseen">Rank</span></th>'
        '<th scope="col" class="name" data-text><button type="button">Model</button></th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _head(number: int, column: Column, sorted_by: bool) -> str:
    direction = "ascending" if column.lower_is_better else "descending"
    sort = f' aria-sort="{direction}"' if sorted_by else ""
    hidden = "" if column.shown else " hidden"
    lower = " data-lower" if column.lower_is_better else ""
    unit = " <small>%</small>" if column.kind == "share" else ""
    note = '<small class="lower">lower is better</small>' if column.lower_is_better else ""
    return (
        f'<th scope="col" data-column="{number}"{lower}{sort}{hidden}>'
        f'<button type="button" title="{escape(column.definition)}">{escape(column.title)}'
        f"{unit}{note}</button></th>"
    )


def _row(
    number: int, evaluation: Evaluation, columns: Sequence[Column], place: int, series: Series
) -> str:
    text = f"{evaluation.label} {evaluation.model} {evaluation.family}".lower()
    library, _, own_name = evaluation.model.rpartition(":")
    name = library if own_name == evaluation.label else evaluation.model
    below = " · ".join(filter(None, dict.fromkeys((name, evaluation.family))))
    cells = "".join(_cell(n, evaluation, column) for n, column in enumerate(columns))
    return (
        f'<tr data-row="{number}" data-series="{place}" data-text="{escape(text)}">'
        f'<td class="rank"></td><th scope="row" class="name"><span class="label">{symbol(series)}'
        f"<span>{_breaking(evaluation.label)}</span></span>"
        f"<small>{_breaking(below)}</small></th>{cells}</tr>"
    )


def _breaking(name: str) -> str:
    """Escapes a name, and lets lines break after what stands between its words."""
    return re.sub(r"([_/:])", r"\1<wbr>", escape(name))


def _cell(number: int, evaluation: Evaluation, column: Column) -> str:
    hidden = "" if column.shown else " hidden"
    metric = column.of(evaluation)
    if metric is None:
        return f'<td data-column="{number}"{hidden}></td>'
    spans = "".join(
        f'<small class="{over}">[{column.format(low)}, {column.format(high)}]</small>'
        for over, (low, high) in metric.intervals.items()
    )
    flag = ""
    if saturated(evaluation, column):
        flag = '<small class="flag">saturated</small>'
    return (
        f'<td data-column="{number}" data-value="{metric.value:.6g}"{hidden}>'
        f"<b>{column.format(metric.value)}</b>{_bar(column, metric.value, metric.intervals)}"
        f"{spans}{flag}</td>"
    )


def _bar(column: Column, value: float, intervals: dict[str, tuple[float, float]]) -> str:
    """Returns a small bar: where a share is in [0, 1], RCS in [-1, 1], with its intervals."""
    if column.kind == "count":
        return ""
    low, width = (0.0, 1.0) if column.kind == "share" else (-1.0, 2.0)
    if not low <= value <= low + width:
        return ""

    def place(value: float) -> str:
        return f"{100 * min(max((value - low) / width, 0), 1):.1f}%"

    places = [f"--v:{place(value)}"]
    for over in OVER:
        if over in intervals:
            places += [f"--{over[0]}{n}:{place(end)}" for n, end in enumerate(intervals[over])]
    return f'<i class="bar {column.kind}" style="{";".join(places)}"></i>'


def chooser(columns: Sequence[Column]) -> str:
    """Returns a checkbox with the definition of every column, by protocol."""
    parts = []
    for protocol in dict.fromkeys(column.protocol for column in columns):
        boxes = "".join(
            f'<label><input type="checkbox" data-column="{number}"'
            f"{' checked' if column.shown else ''}> <span><b>{escape(column.title)}</b> "
            f"<small>{escape(column.definition)}</small></span></label>"
            for number, column in enumerate(columns)
            if column.protocol == protocol
        )
        parts.append(
            f"<fieldset><legend>{escape(protocol_title(protocol))}</legend>{boxes}</fieldset>"
        )
    return "".join(parts)


def legend(series: Sequence[Series]) -> str:
    """Returns a button for every series, which shows it alone."""
    return "".join(
        f'<button type="button" class="chip" aria-pressed="false" data-series="{number}">'
        f"{symbol(one)}{escape(one.title)}</button>"
        for number, one in enumerate(series)
    )

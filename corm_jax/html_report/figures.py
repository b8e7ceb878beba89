"""The figures of the page, drawn by matplotlib: static, so that they need no script to be read."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from corm_jax.html_report.columns import Column, saturated
from corm_jax.html_report.evaluations import Evaluation, Metric
from corm_jax.html_report.series import Series
from corm_jax.html_report.svg import INK, SERIES, SOFT, STYLE, new_figure, render, row_id

WIDTH, HEIGHT = 360, 310  # a phone shows them as they are, a desk three in a row
FAMILY_HEIGHT = 24  # of a line


class Rows(NamedTuple):
    """What all figures draw.

    Attributes:
      evaluations: of the page.
      columns: of the page.
      series: of the page.
      series_of: the number of each evaluation's.
    """

    evaluations: Sequence[Evaluation]
    columns: Sequence[Column]
    series: Sequence[Series]
    series_of: Sequence[int]

    def column(self, name: str) -> Column | None:
        """Returns the first column of a name, if there is one."""
        return next((column for column in self.columns if column.name == name), None)

    def style(self, row: int) -> tuple[str, str]:
        """Returns the (colour, marker) of an evaluation."""
        series = self.series[self.series_of[row]]
        return SERIES[series.colour], series.marker


class Drawing(NamedTuple):
    """A figure.

    Attributes:
      svg: the element.
      title: of the figure.
      caption: what it shows and how to read it.
      columns: the numbers of the columns that it shows.
    """

    svg: str
    title: str
    caption: str
    columns: tuple[int, ...]


def figures(rows: Rows) -> str:
    """Returns all figures that the evaluations have something to draw for."""
    with matplotlib.rc_context(STYLE):
        drawn = [
            _scatter(
                rows, "clean", "core", "What noise on the background leaves of clean accuracy."
            ),
            _scatter(
                rows,
                "clean",
                "swapped_background",
                "What another class's background leaves of it, without any noise.",
            ),
            _scatter(
                rows,
                "spurious",
                "core",
                "Above the line the object matters more than the background (RCS > 0).",
            ),
            _by_family(rows),
            *_curves(rows),
        ]
    return "".join(map(_figure, (drawing for drawing in drawn if drawing)))


def _figure(drawing: Drawing) -> str:
    columns = ",".join(map(str, drawing.columns))
    return (
        f'<figure data-columns="{columns}"><figcaption><h3>{escape(drawing.title)}</h3>'
        f"<p>{escape(drawing.caption)}</p></figcaption>{drawing.svg}</figure>"
    )


def _scatter(rows: Rows, x_name: str, y_name: str, caption: str) -> Drawing | None:
    x, y = rows.column(x_name), rows.column(y_name)
    if x is None or y is None:
        return None
    pairs = [(n, x.of(e), y.of(e)) for n, e in enumerate(rows.evaluations)]
    shown = [(row, a, b) for row, a, b in pairs if a and b]
    if not shown:
        return None
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    for row, a, b in shown:
        _point(axes, rows, row, (100 * a.value, 100 * b.value), (_span(a), _span(b)))
    limits = [
        _limits([m.value for m in metrics], [_interval(m) for m in metrics])
        for metrics in zip(*((a, b) for _, a, b in shown), strict=True)
    ]
    low, high = max(pair[0] for pair in limits), min(pair[1] for pair in limits)
    if low < high:
        axes.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.set(xlabel=f"{x.title} accuracy, %", ylabel=f"{y.title} accuracy, %")
    title = f"{x.title} and {y.title.lower()}"
    text = f"{caption} The broken line is where both are equal. {_count(rows, len(shown))}"
    numbers = (rows.columns.index(x), rows.columns.index(y))
    return Drawing(render(figure, f"{x_name}-{y_name}", title), title, text, numbers)


def _by_family(rows: Rows) -> Drawing | None:
    column = rows.column("rcs")
    if column is None:
        return None
    families: dict[str, list[tuple[int, Metric]]] = {}
    for row, evaluation in enumerate(rows.evaluations):
        if metric := column.of(evaluation):
            families.setdefault(evaluation.family, []).append((row, metric))
    order = sorted(families, key=lambda f: np.mean([m.value for _, m in families[f]]))
    figure = new_figure(WIDTH, max(HEIGHT, FAMILY_HEIGHT * len(order) + 70))
    axes = figure.subplots()
    for place, name in enumerate(order):
        members = sorted(families[name], key=lambda pair: pair[1].value)
        offsets = np.linspace(-0.3, 0.3, len(members)) if len(members) > 1 else [0.0]
        for (row, metric), offset in zip(members, offsets, strict=True):
            hollow = saturated(rows.evaluations[row], column)
            at = (metric.value, place + offset)
            _point(axes, rows, row, at, (_span(metric, 1.0), None), hollow=hollow)
        mean = np.mean([metric.value for _, metric in members])
        axes.plot([mean, mean], [place - 0.38, place + 0.38], color=INK, linewidth=1.5)
    axes.axvline(0, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    everything = [m for members in families.values() for _, m in members]
    ends = [abs(v) for m in everything for v in (m.value, *(_interval(m) or ()))]
    reach = min(1.05, max(0.1, 1.08 * max(ends)))
    axes.set(xlim=(-reach, reach), ylim=(-0.6, len(order) - 0.4), xlabel=column.title)
    axes.set_yticks(range(len(order)), order)
    axes.grid(visible=False, axis="y")
    text = (
        "Left of 0 a model leans on the background more than on the object. A stroke is a family's "
        "mean; hollow: saturated, where RCS says little. " + _count(rows, len(everything))
    )
    title = "RCS by family"
    return Drawing(render(figure, "family", title), title, text, (rows.columns.index(column),))


def _curves(rows: Rows) -> list[Drawing]:
    names = dict.fromkeys(name for e in rows.evaluations for name in e.curves)
    drawn = []
    for name in names:
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.subplots()
        shown = [(n, e.curves[name]) for n, e in enumerate(rows.evaluations) if name in e.curves]
        for row, curve in shown:
            colour, marker = rows.style(row)
            accuracy = 100 * np.asarray(curve.accuracy)
            axes.plot(
                curve.sigma,
                accuracy,
                color=colour,
                marker=marker,
                markersize=3.5,
                linewidth=1.3,
                gid=row_id(row),
            )
        axes.set(xlabel="Standard deviation of the noise", ylabel="Accuracy, %", ylim=(0, 102))
        axes.set_xlim(left=0)
        title = f"{name.replace('_', ' ').capitalize()} accuracy and the strength of noise"
        where = {"core": "outside the core region", "spurious": "on the core region"}.get(name, "")
        caption = f"Noise {where}. " if where else ""
        text = f"{caption}Pixels are in [0, 1]. {_count(rows, len(shown))}"
        drawn.append(Drawing(render(figure, f"curve-{len(drawn)}", title), title, text, ()))
    return drawn


def _point(
    axes: Axes,
    rows: Rows,
    row: int,
    at: tuple[float, float],
    spans: tuple[tuple[float, float] | None, tuple[float, float] | None],
    *,
    hollow: bool = False,
) -> None:
    """Draws an evaluation with its intervals along x and y, if it has them."""
    colour, marker = rows.style(row)
    (x, y), (across, along) = at, spans
    line = {"color": colour, "linewidth": 1.2, "alpha": 0.45}
    if across:
        axes.plot(across, (y, y), gid=row_id(row, "x"), **line)
    if along:
        axes.plot((x, x), along, gid=row_id(row, "y"), **line)
    axes.plot(
        x,
        y,
        marker=marker,
        markersize=6.5,
        markerfacecolor="none" if hollow else colour,
        markeredgecolor=colour,
        markeredgewidth=1.5 if hollow else 0,
        linestyle="none",
        gid=row_id(row),
    )


def _interval(metric: Metric) -> tuple[float, float] | None:
    return metric.intervals.get("images")


def _span(metric: Metric, scale: float = 100.0) -> tuple[float, float] | None:
    interval = _interval(metric)
    return None if interval is None else (scale * interval[0], scale * interval[1])


def _limits(
    values: Sequence[float], intervals: Sequence[tuple[float, float] | None]
) -> tuple[float, float]:
    """Returns limits in percent around all values and their intervals."""
    ends = [100 * end for pair in intervals if pair for end in pair] + [100 * v for v in values]
    margin = max(0.06 * (max(ends) - min(ends)), 1.0)
    return min(ends) - margin, max(ends) + margin


def _count(rows: Rows, shown: int) -> str:
    """Says how many models a figure leaves out."""
    left_out = len(rows.evaluations) - shown
    return f"{left_out} of {len(rows.evaluations)} models were not measured." if left_out else ""

"""The picture of a sweep: clean versus core accuracy of every arm, and their Pareto front."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from corm_jax.files import replacing
from corm_jax.losses.controls import CONTROLS
from corm_jax.sweep.selection import Summary, pareto_front

MARKERS = dict(zip(CONTROLS, "osDv^<>PX", strict=False))
MARGIN = 2.0  # pixels between labels
MARKER_BOX = 5.0  # pixels from a marker's middle to its edge
RADII = (5, 9, 14, 20, 28, 38, 50, 64, 80, 100, 125, 155, 190)  # pixels from a marker to its label
DIRECTIONS = 16
LEADER = 12.0  # pixels between a marker and its label from which on a line joins them


def draw(path: Path, summaries: Sequence[Summary], title: str, selected: str) -> None:
    """Draws clean versus core accuracy on the validation split, with standard errors.

    Args:
      path: PNG file to write.
      summaries: of the arms; those without both accuracies are left out.
      title: of the picture.
      selected: name of the arm to ring, "" for none.
    """
    # (clean, core) of each arm, and their standard errors, in %.
    points: dict[str, tuple[float, float]] = {}
    errors: dict[str, tuple[float, float]] = {}
    for summary in summaries:
        pair = [summary.means.get(key, (math.nan, math.nan)) for key in ("clean", "core")]
        if all(math.isfinite(mean) for mean, _ in pair):
            points[summary.arm.name] = (100 * pair[0][0], 100 * pair[1][0])
            errors[summary.arm.name] = (_length(pair[0][1]), _length(pair[1][1]))
    figure = Figure(figsize=(9, 7))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    front = pareto_front(points)
    axes.plot(*zip(*(points[name] for name in front), strict=True) if front else ([], []), "k--")
    axes.lines[0].set(alpha=0.4, label="Pareto front", zorder=1)
    objectives = list(dict.fromkeys(s.arm.objective for s in summaries))
    palette = matplotlib.colormaps["tab20"]
    for summary in summaries:
        if summary.arm.name not in points:
            continue
        x, y = points[summary.arm.name]
        axes.errorbar(
            x,
            y,
            xerr=errors[summary.arm.name][0],
            yerr=errors[summary.arm.name][1],
            fmt=MARKERS[summary.arm.control],
            color=palette(objectives.index(summary.arm.objective) % 20),
            elinewidth=0.8,
            zorder=2,
        )
    if selected in points:
        axes.plot(*points[selected], "o", mfc="none", mec="red", ms=15, label="selected")
    axes.set(title=title, xlabel="clean accuracy (%)", ylabel="core accuracy (%)")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    figure.tight_layout()
    _label(axes, points, errors)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi)


def _length(error: float) -> float:
    return 0.0 if math.isnan(error) else 100 * error


def _label(
    axes: Axes, points: dict[str, tuple[float, float]], errors: dict[str, tuple[float, float]]
) -> None:
    """Writes each point's name near it, where it covers no other name, marker or error bar."""
    renderer = axes.figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    places = {name: axes.transData.transform(point) for name, point in points.items()}
    taken = [axes.get_legend().get_window_extent(renderer)]
    for name, (x, y) in places.items():
        right, top = axes.transData.transform(
            [points[name][0] + errors[name][0], points[name][1] + errors[name][1]]
        )
        taken += [_around(x, y, 2 * (right - x), 1), _around(x, y, 1, 2 * (top - y))]
        taken.append(_around(x, y, 2 * MARKER_BOX, 2 * MARKER_BOX))
    pixel = 72.0 / axes.figure.dpi  # in points
    for name, (x, y) in places.items():
        text = axes.annotate(
            name, points[name], (0, 0), textcoords="offset points", fontsize=8, ha="center"
        )
        text.set(va="center", zorder=3)
        extent = text.get_window_extent(renderer)
        size = (extent.width + MARGIN, extent.height + MARGIN)
        boxes = [_around(x + dx, y + dy, *size) for dx, dy in _offsets(*size)]
        free = [
            box
            for box in boxes
            if _inside(box, frame) and not any(box.overlaps(other) for other in taken)
        ]
        box = free[0] if free else boxes[-1]
        taken.append(box)
        middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
        text.set_position(((middle[0] - x) * pixel, (middle[1] - y) * pixel))
        near = (min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1))
        if math.dist(near, (x, y)) > LEADER:
            ends = axes.transData.inverted().transform([(x, y), near])
            axes.plot(ends[:, 0], ends[:, 1], color="grey", linewidth=0.5, zorder=1)


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """Returns where the middle of a label may be from its marker, the nearest first."""
    # From the diagonal on: error bars are along the axes.
    angles = [math.pi / 4 + 2 * math.pi * k / DIRECTIONS for k in range(DIRECTIONS)]
    return [
        (math.cos(a) * (radius + width / 2), math.sin(a) * (radius + height / 2))
        for radius in RADII
        for a in angles
    ]


def _around(x: float, y: float, width: float, height: float) -> Bbox:
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _inside(box: Bbox, frame: Bbox) -> bool:
    return frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1

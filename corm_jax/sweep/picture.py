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
RADII = (7, 12, 18, 26, 36, 48, 62, 78, 96, 120, 150)  # pixels from a marker to its label
DIRECTIONS = 16


def draw(path: Path, summaries: Sequence[Summary], title: str, selected: str) -> None:
    """Draws clean versus core accuracy on the validation split, with standard errors.

    Args:
      path: PNG file to write.
      summaries: of the arms; those without both accuracies are left out.
      title: of the picture.
      selected: name of the arm to ring, "" for none.
    """
    points = {
        s.arm.name: (100 * s.means["clean"][0], 100 * s.means["core"][0])
        for s in summaries
        if all(math.isfinite(s.means.get(key, (math.nan,))[0]) for key in ("clean", "core"))
    }
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
            xerr=_length(summary.means["clean"][1]),
            yerr=_length(summary.means["core"][1]),
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
    _label(axes, points)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi)


def _length(error: float) -> float:
    return 0.0 if math.isnan(error) else 100 * error


def _label(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Writes each point's name beside it, where it covers no other name and no marker."""
    renderer = axes.figure.canvas.get_renderer()
    frame, legend = axes.get_window_extent(renderer), axes.get_legend()
    places = {name: axes.transData.transform(point) for name, point in points.items()}
    taken = [_around(x, y, 2 * MARKER_BOX, 2 * MARKER_BOX) for x, y in places.values()]
    taken.append(legend.get_window_extent(renderer))
    pixel = 72.0 / axes.figure.dpi  # in points
    for name, (x, y) in places.items():
        text = axes.annotate(
            name, points[name], (0, 0), textcoords="offset points", fontsize=8, ha="center"
        )
        text.set(va="center", zorder=3)
        extent = text.get_window_extent(renderer)
        size = (extent.width + MARGIN, extent.height + MARGIN)
        spots = [(x + dx, y + dy) for dx, dy in _offsets(*size)]
        free = [
            spot
            for spot in spots
            if _inside(_around(*spot, *size), frame)
            and not any(_around(*spot, *size).overlaps(other) for other in taken)
        ]
        spot = free[0] if free else spots[-1]
        taken.append(_around(*spot, *size))
        text.set_position(((spot[0] - x) * pixel, (spot[1] - y) * pixel))
        if math.dist(spot, (x, y)) > size[0] / 2 + RADII[2]:
            ends = axes.transData.inverted().transform([(x, y), spot])
            axes.plot(ends[:, 0], ends[:, 1], color="grey", linewidth=0.5, zorder=1)


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """Returns where the middle of a label may be from its marker, the nearest first."""
    angles = [2 * math.pi * k / DIRECTIONS for k in range(DIRECTIONS)]
    return [
        (math.cos(a) * (radius + width / 2), math.sin(a) * (radius + height / 2))
        for radius in RADII
        for a in angles
    ]


def _around(x: float, y: float, width: float, height: float) -> Bbox:
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _inside(box: Bbox, frame: Bbox) -> bool:
    return frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1

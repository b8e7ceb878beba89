"""Count and measure the masks of a directory of mask records: a table and a picture.

A mask's share is the mean of the soft mask over its frame. Shares are those of all grids; of PNG
masks, of a random sample of 10,000 at most.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from corm_jax.files import replacing
from corm_jax.masks import pixels
from corm_jax.masks.classes import NO_CLASS, group
from corm_jax.masks.records import KINDS, MaskRecords

matplotlib.use("agg")

PICTURE = "stats.png"
SAMPLE = 10_000
GRIDS = 1 << 14  # read at once
BINS = 25
COLORS = {"core": "tab:green", "spurious": "tab:red"}


@dataclass(frozen=True)
class Statistics:
    """What is measured of mask records.

    Attributes:
      counts: records with a mask of each kind, with both, with none.
      classes: int64 [classes], how many records each class has.
      shares: float64 [measured masks] in [0, 1] for each kind.
    """

    counts: dict[str, int]
    classes: np.ndarray
    shares: dict[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("records", type=Path, metavar="DIR", help="directory of mask records")
    parser.add_argument("--output", type=Path, metavar="PNG", help=f"default: DIR/{PICTURE}")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    records = MaskRecords.open(arguments.records)
    measured = measure(records)
    print(format_statistics(records, measured))
    output = arguments.output or arguments.records / PICTURE
    draw(output, measured, title=f"{records.path.name}: {len(records.file_names):,} records")
    print(f"picture: {output}")


def measure(records: MaskRecords) -> Statistics:
    """Measures mask records.

    Raises:
      UserError: if a PNG mask is damaged; names it.
    """
    core, spurious = (records.has(kind) for kind in KINDS)
    classes, numbers = group(records.file_names)
    sizes = np.bincount(numbers, minlength=len(classes))
    return Statistics(
        counts={
            "core": int(core.sum()),
            "spurious": int(spurious.sum()),
            "both": int((core & spurious).sum()),
            "none": int((~core & ~spurious).sum()),
        },
        classes=sizes[np.array(classes, np.str_) != NO_CLASS],
        shares={kind: _shares(records, kind) for kind in KINDS},
    )


def _shares(records: MaskRecords, kind: str) -> np.ndarray:
    """Returns the shares, float64 [masks], of all masks of a kind or of a sample."""
    rows = np.flatnonzero(records.has(kind))
    if records.encoding == "grid":
        starts = range(0, len(rows), GRIDS)
        parts = [records.grids(kind, rows[i : i + GRIDS]).mean(axis=(1, 2)) / 255 for i in starts]
        return np.concatenate([np.zeros(0), *parts])
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    bar = tqdm(rows, unit="mask", desc=f"decoding {kind}", disable=None, leave=False)
    return np.array([pixels.read(records, kind, row).mean() / 255 for row in bar])


def format_statistics(records: MaskRecords, measured: Statistics) -> str:
    """Returns the measured values as lines of text."""
    masks = records.encoding
    if records.encoding == "grid":
        masks = f"{records.size[0]}x{records.size[1]} grids"
    frame = ", ".join(f"{key} {value}" for key, value in records.frame.items())
    lines = [
        f"{records.path}: {len(records.file_names):,} records",
        f"  masks: {masks}, frame: {frame}, source: {records.source or 'not told'}",
        *(f"  {name:<10}{count:>12,}" for name, count in measured.counts.items()),
        _classes_line(measured.classes),
        "",
        f"  {'share of the frame':<20}{'masks':>10}{'mean':>7}"
        + "".join(f"{f'{decile}%':>6}" for decile in range(10, 100, 10)),
    ]
    for kind, shares in measured.shares.items():
        if len(shares):
            deciles = np.percentile(shares, range(10, 100, 10))
            values = "".join(f"{value:>6.2f}" for value in deciles)
            lines.append(f"  {kind:<20}{len(shares):>10,}{shares.mean():>7.2f}{values}")
        else:
            lines.append(f"  {kind:<20}{0:>10}")
    sampled = [k for k, shares in measured.shares.items() if len(shares) < measured.counts[k]]
    if sampled:
        lines.append(f"  estimated from {SAMPLE:,} masks drawn at random: {', '.join(sampled)}")
    return "\n".join(lines)


def _classes_line(sizes: np.ndarray) -> str:
    if not len(sizes):
        return "  no class in the file names"
    return (
        f"  classes: {len(sizes):,}; records a class: min {sizes.min():,}, "
        f"median {np.median(sizes):,.0f}, max {sizes.max():,}"
    )


def draw(path: Path, measured: Statistics, *, title: str) -> None:
    """Draws how the masks' shares and the records of the classes are distributed.

    Args:
      path: PNG file to write.
      measured: what to draw.
      title: of the picture.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (kind, shares) in zip(panels, measured.shares.items(), strict=False):
        _draw_shares(axes, kind, shares, measured.counts[kind])
    _draw_classes(panels[2], measured.classes)
    figure.suptitle(title, parse_math=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_shares(axes: Axes, kind: str, shares: np.ndarray, count: int) -> None:
    if not len(shares):
        _draw_nothing(axes, f"no {kind} masks")
        return
    sampled = f" of {count:,}" if len(shares) < count else ""
    axes.set(title=f"{len(shares):,}{sampled} {kind} masks", xlim=(0, 100))
    axes.set(xlabel=f"{kind} share of the frame (%)", ylabel="masks")
    axes.hist(100 * shares, bins=np.linspace(0, 100, BINS + 1), color=COLORS[kind], alpha=0.75)
    median = 100 * float(np.median(shares))
    axes.axvline(median, color="black", linestyle="--", label=f"median {median:.0f} %")
    axes.legend(frameon=False)
    _tidy(axes)


def _draw_classes(axes: Axes, sizes: np.ndarray) -> None:
    if not len(sizes):
        _draw_nothing(axes, "no class in the file names")
        return
    axes.set(title=f"{len(sizes):,} classes", xlabel="records of a class", ylabel="classes")
    # Whole numbers a bin, so that no bin is empty for want of a number in it.
    width = -(-(int(sizes.max()) + 1) // BINS)
    axes.hist(sizes, bins=np.arange(BINS + 1) * width - 0.5, color="tab:blue", alpha=0.75)
    axes.set_xlim(left=-0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _tidy(axes)


def _draw_nothing(axes: Axes, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", color="gray", transform=axes.transAxes)


def _tidy(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)

"""Which evaluations share a colour and a marker: each has its own, or each family has."""

from collections.abc import Sequence
from typing import NamedTuple

from corm_jax.html_report.evaluations import Evaluation

COLOURS = 8  # of style.css: --series-0 ...
MARKERS = "osD^v"  # matplotlib's names
# The same for the legend, in a square of side 12.
SHAPES = {
    "o": '<circle cx="6" cy="6" r="4.5"/>',
    "s": '<rect x="2" y="2" width="8" height="8"/>',
    "D": '<path d="M6 .8 11.2 6 6 11.2.8 6z"/>',
    "^": '<path d="M6 1.2 11 10.6H1z"/>',
    "v": '<path d="M6 10.8 11 1.4H1z"/>',
}


class Series(NamedTuple):
    """Evaluations that look alike.

    Attributes:
      title: a family, or the label of an evaluation.
      colour: number of a colour.
      marker: matplotlib's name.
    """

    title: str
    colour: int
    marker: str


def assign(evaluations: Sequence[Evaluation]) -> tuple[list[Series], list[int]]:
    """Returns (the series, the number of each evaluation's).

    As many evaluations as there are colours have one each; more have that of their family. Series
    that have a colour in common differ in their markers.
    """
    titles = [e.label for e in evaluations]
    if len(titles) > COLOURS:
        titles = [e.family for e in evaluations]
    names = list(dict.fromkeys(titles))
    if len(evaluations) > COLOURS:
        names.sort(key=str.lower)
    series = [
        Series(name, number % COLOURS, MARKERS[number % len(MARKERS)])
        for number, name in enumerate(names)
    ]
    return series, [names.index(title) for title in titles]


def symbol(series: Series) -> str:
    """Returns the marker of a series as SVG."""
    return (
        f'<svg class="symbol" viewBox="0 0 12 12" aria-hidden="true" '
        f'style="fill:var(--series-{series.colour})">{SHAPES[series.marker]}</svg>'
    )

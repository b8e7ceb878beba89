"""Matplotlib's figures as SVG that becomes a part of the page.

Text stays text, in the page's font; colours become the page's CSS variables, so that they follow
the reader's colour scheme; what belongs to a row of the ranking table carries its number.
"""

import io
import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

UNITS = 72  # to an inch: matplotlib's points, which are the page's pixels where width allows
# Each is one variable of style.css; matplotlib itself must use no others.
INK, SOFT, LINE = "#1b1d20", "#5c6168", "#d9dbde"
SERIES = (
    *("#1857c4", "#c25e01", "#1a7f4b", "#b0308f"),
    *("#01808f", "#7a5c2e", "#c62f2f", "#6b4fc9"),
)
VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES)
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "corm_jax",  # the same page from the same files
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.grid": True,
    "grid.color": LINE,
    "axes.axisbelow": True,
    "text.parse_math": False,  # names may hold dollar signs
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ROW = re.compile(r"row-(\d+)(?:-.*)?")


def row_id(row: int, part: str = "") -> str:
    """Returns the `gid` of an artist that belongs to a row of the ranking table.

    Args:
      row: the evaluation's number.
      part: tells apart several artists of a row.
    """
    return f"row-{row}-{part}"


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of a size in the page's pixels."""
    return Figure(figsize=(width / UNITS, height / UNITS), layout="constrained")


def render(figure: Figure, prefix: str, description: str) -> str:
    """Returns a figure as an <svg> element.

    Call within `matplotlib.rc_context(STYLE)`, as the making of the figure.

    Args:
      figure: from `new_figure`.
      prefix: starts its identifiers, which the page must not have twice.
      description: for those who do not see it.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing, transparent=True)
    root = ElementTree.fromstring(file.getvalue())
    text = ElementTree.tostring(root, encoding="unicode")
    needed = set(re.findall(r"""(?:href="#|url\(#)([^")]+)""", text))
    # Its rules would be the whole page's; style.css has them for figures.
    root.remove(root.find(f"{{{SVG}}}defs"))
    for element in root.iter():
        _clean(element, prefix, needed)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": description}
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, prefix: str, needed: set[str]) -> None:
    own = element.attrib.pop("id", "")
    if match := ROW.fullmatch(own):
        element.attrib |= {"data-row": match[1], "class": "point"}
    elif own in needed:
        element.attrib["id"] = f"{prefix}-{own}"
    for key, value in element.attrib.items():
        if key == f"{{{XLINK}}}href":
            element.attrib[key] = value.replace("#", f"#{prefix}-")
        elif key in ("clip-path", "style"):
            value = value.replace("url(#", f"url(#{prefix}-")
            element.attrib[key] = _through_variables(value)
        elif key == "d":
            element.attrib[key] = _shorter(value)
    if not element.tag.endswith("}text"):
        element.text = None
    element.tail = None


def _through_variables(style: str) -> str:
    """Replaces the colours of an inline style, and leaves the font to the page."""
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    style = re.sub(r"font: [^;]*?([\d.]+px)[^;]*", r"font-size: \1", style)  # of some versions
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return style


def _shorter(path: str) -> str:
    """Rounds the coordinates of a path to hundredths of a pixel."""
    return re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}", " ".join(path.split()))

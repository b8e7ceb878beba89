"""Puts the page together: one file that asks for nothing else."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from corm_jax.files import replacing
from corm_jax.html_report.classes import by_class
from corm_jax.html_report.columns import columns
from corm_jax.html_report.evaluations import Evaluation, read_evaluations
from corm_jax.html_report.figures import Rows, figures
from corm_jax.html_report.panels import panels, read_examples
from corm_jax.html_report.provenance import provenance, summary
from corm_jax.html_report.series import assign
from corm_jax.html_report.tables import chooser, legend, ranking

PAGE = Path(__file__).parent / "page"
READ_BESIDE = (
    "Core accuracy also rises when a model merely becomes robust to noise, so read it beside "
    "swapped background, where another class's background stands in and no noise is added."
)
NOT_SWAPPED = " It was not measured here (python -m corm_jax.evaluate ... --protocol=ablations)."


def write_report(directories: Sequence[Path], output: Path) -> int:
    """Writes the page about evaluations, or finished runs.

    Args:
      directories: one for each model.
      output: the HTML file.

    Returns:
      its size in bytes.

    Raises:
      UserError: if one cannot be read, two do not compare, or the file cannot be written.
    """
    content = build(read_evaluations(directories)).encode()
    with replacing(output) as temporary:
        temporary.write_bytes(content)
    return len(content)


def build(evaluations: Sequence[Evaluation]) -> str:
    """Returns the page as HTML."""
    shown = columns(evaluations)
    series, series_of = assign(evaluations)
    examples = read_examples(evaluations)
    names = next((found.class_names for found in examples if found), None)
    classes = by_class(evaluations, names)
    data = {
        "rows": [evaluation.label for evaluation in evaluations],
        "classNames": [] if names is None else names.tolist(),
        "classes": classes,
        "panels": panels(evaluations, examples),
    }
    script = (PAGE / "page.js").read_text()
    swapped = any(column.name == "swapped_background" for column in shown)
    return Template((PAGE / "index.html").read_text()).substitute(
        policy=_policy(script),
        style=(PAGE / "style.css").read_text(),
        script=script,
        data=_json(data),
        summary=summary(evaluations, len(classes["labels"])),
        read_beside=READ_BESIDE + ("" if swapped else NOT_SWAPPED),
        legend=legend(series),
        chooser=chooser(shown),
        ranking=ranking(evaluations, shown, series, series_of),
        count=len(evaluations),
        figures=figures(Rows(evaluations, shown, series, series_of)),
        provenance=provenance(evaluations),
    )


def _policy(script: str) -> str:
    """Returns a content security policy: this one script, no requests."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sources = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; {sources}"


def _json(data: Any) -> str:
    """Returns JSON that does not end the <script> element that it stands in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")

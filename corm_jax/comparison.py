"""The paired comparison of two evaluations."""

from pathlib import Path

from corm_jax import statistics
from corm_jax.errors import UserError
from corm_jax.evaluation import format_rows, format_span, format_value
from corm_jax.evaluation_files import incomparable_keys, read_outcomes
from corm_jax.files import read_json


def compare(first: Path, second: Path) -> str:
    """Returns a table of the second evaluation's metrics less the first's, image by image.

    Args:
      first: a directory that `corm_jax.evaluate` wrote.
      second: another.

    Raises:
      UserError: if they do not compare; names the keys that differ.
    """
    pair = [read_json(path / "results.json") for path in (first, second)]
    differing = incomparable_keys(*pair)
    if differing:
        raise UserError(
            f"{first} and {second} do not compare: {', '.join(differing)} "
            "differ; evaluate both models on the same data by the same protocol"
        )
    lines = [("metric", "first", "second", "difference", "95 % over images", "over classes")]
    for protocol in (name for name in pair[0]["protocols"] if name in pair[1]["protocols"]):
        found = statistics.differences(
            *(read_outcomes(d / f"{protocol}.npz") for d in (first, second))
        )
        for name, spans in found.items():
            before, after = (results["protocols"][protocol]["metrics"][name] for results in pair)
            values = [format_value(name, value) for value in (before, after, after - before)]
            lines.append(
                (name, *values, *(format_span(name, spans[k]) for k in ("images", "classes")))
            )
    return format_rows(lines)

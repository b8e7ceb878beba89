"""The metrics of the evaluations as columns: their order, titles and numbers."""

from collections.abc import Sequence
from typing import NamedTuple

from corm_jax.html_report.evaluations import RUN, Evaluation, Metric
from corm_jax.protocols.summary import METRICS, sensitivity
from corm_jax.statistics import is_saturated

# Shown at first, in this order; the others can be switched on. Swapped background stands beside
# core accuracy, which mere robustness to noise raises as well.
SHOWN = (
    *("clean", "core", "swapped_background", "spurious", "rcs"),
    *("grey_background", "grey_object", "counterfactual"),
)
SPELLED = {"rcs": "RCS", "rfs": "RFS", "ece": "ECE", "iou": "IoU", "l2": "L2", "cam": "CAM"}


class Column(NamedTuple):
    """A metric.

    Attributes:
      protocol: that measures it.
      name: of the metric.
      title: for people.
      definition: in words.
      kind: "share" (in [0, 1], shown in percent), "score" or "count".
      lower_is_better: whether it is.
      shown: whether it is shown at first.
    """

    protocol: str
    name: str
    title: str
    definition: str
    kind: str
    lower_is_better: bool
    shown: bool

    def of(self, evaluation: Evaluation) -> Metric | None:
        """Returns the metric of an evaluation, None where it was not measured."""
        return evaluation.metrics.get((self.protocol, self.name))

    def format(self, value: float) -> str:
        """Returns a value for people; percent without their sign, which the head has."""
        if self.kind == "share":
            return f"{100 * value:.1f}"
        if self.kind == "count":
            return f"{value:.0f}"
        return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def columns(evaluations: Sequence[Evaluation]) -> list[Column]:
    """Returns a column for every metric that an evaluation has; those shown at first come first."""
    definitions: dict[tuple[str, str], str] = {}
    for evaluation in evaluations:
        definitions = {**evaluation.definitions, **definitions}
    found = [
        Column(
            protocol=protocol,
            name=name,
            title=title(name),
            definition=definition,
            kind=_kind(name, definition),
            lower_is_better="lower is better" in definition,
            shown=name in SHOWN,
        )
        for (protocol, name), definition in definitions.items()
    ]
    order = {name: place for place, name in enumerate(SHOWN)}
    return sorted(found, key=lambda column: order.get(column.name, len(order)))


def title(name: str) -> str:
    """Returns the name of a metric, view or method for people."""
    words = [SPELLED.get(word, word) for word in name.split("_")]
    text = " ".join(words).replace("grad CAM", "Grad-CAM").replace("hires CAM", "HiResCAM")
    return text[:1].upper() + text[1:]


def _kind(name: str, definition: str) -> str:
    if name in METRICS:
        return METRICS[name].kind
    return "share" if "accuracy" in definition else "score"  # of a run's other sets


def saturated(evaluation: Evaluation, column: Column) -> bool:
    """Returns whether a column is a relative sensitivity, near saturation in an evaluation."""
    metric = METRICS.get(column.name)
    if metric is None or metric.compute is not sensitivity or column.of(evaluation) is None:
        return False
    pair = [evaluation.metrics.get((column.protocol, name)) for name in metric.outcomes]
    return all(pair) and is_saturated(*(accuracy.value for accuracy in pair))


def ranking_column(columns: Sequence[Column], evaluations: Sequence[Evaluation]) -> Column:
    """Returns the column that rows are sorted by at first.

    Swapped background where every model has it: core accuracy ranks robustness to noise as well.
    """
    for name in ("swapped_background", "core", "clean"):
        for column in columns:
            if column.name == name and all(column.of(e) for e in evaluations):
                return column
    return columns[0]


def protocol_title(protocol: str) -> str:
    """Returns the name of a protocol for people."""
    return "Metrics of the run" if protocol == RUN else title(protocol)

"""Reads what the page is about: evaluations, or finished runs, that compare."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from corm_jax.errors import UserError
from corm_jax.evaluation_files import incomparable_keys
from corm_jax.files import read_json
from corm_jax.models.families import family

RUN = "run"  # stands for the protocols of a run, whose results are not told apart by protocol
# What the metrics of a run depend on beside its model, in the `data` of its config.
RUN_DATA = (
    *("source", "folder", "tfds_name", "data_dir", "validation_split", "validation_share"),
    *("masks", "validation_masks", "counterfactual_split"),
)
OVER = ("images", "classes")  # what intervals are over


class Metric(NamedTuple):
    """A metric of a model.

    Attributes:
      value: of the metric.
      intervals: "images" or "classes" -> (low, high), its 95 % interval over them.
    """

    value: float
    intervals: dict[str, tuple[float, float]]


class Curve(NamedTuple):
    """Accuracy over the strength of noise.

    Attributes:
      sigma: standard deviations of the noise.
      accuracy: at each, in [0, 1].
    """

    sigma: list[float]
    accuracy: list[float]


@dataclass(frozen=True)
class Evaluation:
    """A row of the page.

    Attributes:
      path: the directory.
      label: what tells it apart from the others: the end of its path.
      model: the model's name.
      family: the model's.
      results: content of its results.json.
      metrics: by protocol and name; what was not measured is not in it.
      definitions: of these metrics.
      curves: by their names.
    """

    path: Path
    label: str
    model: str
    family: str
    results: dict[str, Any]
    metrics: dict[tuple[str, str], Metric]
    definitions: dict[tuple[str, str], str]
    curves: dict[str, Curve]

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """Returns groups of keys, as `corm_jax.evaluation_files.provenance` has them."""
        return self.results["provenance"]


def read_evaluations(directories: Sequence[Path]) -> list[Evaluation]:
    """Reads evaluations, or runs, in the order of their directories.

    Raises:
      UserError: if one cannot be read or is given twice, or if two do not compare; names the keys
        that differ.
    """
    labels = _labels(directories)
    found = [_read(path, label) for path, label in zip(directories, labels, strict=True)]
    for other in found[1:]:
        differing = incomparable_keys(found[0].results, other.results)
        if differing:
            raise UserError(
                f"{found[0].path} and {other.path} do not compare: {', '.join(differing)} differ; "
                "evaluate all models on the same data by the same protocol, or report them apart"
            )
    return found


def _labels(directories: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths, of one length for all, that tell them apart."""
    parts = [path.resolve().parts for path in directories]
    repeated = [path for path, count in Counter(parts).items() if count > 1]
    if repeated:
        raise UserError(f"{Path(*repeated[0])} is given twice; name each directory once")
    length = 1
    while len({path[-length:] for path in parts}) < len(parts):
        length += 1
    return [str(Path(*path[-length:])) for path in parts]


def _read(directory: Path, label: str) -> Evaluation:
    path = directory / "results.json"
    if not path.exists():
        raise UserError(
            f"{path} does not exist: {directory} holds no evaluation (python -m corm_jax.evaluate "
            f"... --output={directory}) and no finished run"
        )
    results = read_json(path)
    try:
        if "objective" in results:
            results = _of_run(results, read_json(directory / "config.json"))
        return _evaluation(directory, label, results)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold the results of an evaluation or of a run ({error!r}); write it "
            "again"
        ) from error


def _of_run(results: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Returns the results of a run in the form of an evaluation's, which has more."""
    objective, control = results["objective"], results["control"]
    protocol = results["protocol"]
    return {
        "provenance": {
            "model": {"name": results["model"], "objective": objective, "control": control},
            "preprocessing": {
                "image_size": config["data"]["image_size"],
                "dilations": protocol["dilations"],
            },
            "data": {key: config["data"][key] for key in RUN_DATA}
            | {"images": int(results["metrics"]["images"])},
            "noise": {
                "sigma": protocol["sigma"],
                "trials": protocol["trials"],
                "seed": protocol["noise_seed"],
            },
            "versions": results["versions"],
        },
        "protocols": {RUN: {"metrics": results["metrics"], "definitions": results["definitions"]}},
    }


def _evaluation(directory: Path, label: str, results: dict[str, Any]) -> Evaluation:
    model = str(results["provenance"]["model"]["name"])
    metrics: dict[tuple[str, str], Metric] = {}
    definitions: dict[tuple[str, str], str] = {}
    curves: dict[str, Curve] = {}
    for protocol, found in results["protocols"].items():
        spans = found.get("intervals", {})
        for name, value in found["metrics"].items():
            if value is None or not math.isfinite(value):  # measured on nothing
                continue
            intervals = {over: _interval(spans[name][over]) for over in OVER if name in spans}
            metrics[protocol, name] = Metric(float(value), intervals)
            definitions[protocol, name] = str(found["definitions"][name])
        for name, curve in found.get("curves", {}).items():
            curves[name] = Curve([*map(float, curve["sigma"])], [*map(float, curve["accuracy"])])
    if not metrics:
        raise UserError(f"{directory}/results.json holds no metrics yet; finish the evaluation")
    return Evaluation(
        path=directory,
        label=label,
        model=model,
        family=family(model),
        results=results,
        metrics=metrics,
        definitions=definitions,
        curves=curves,
    )


def _interval(span: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, span)
    return low, high

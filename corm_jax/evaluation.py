"""An evaluation: a model by several protocols, kept as it goes, so that it can be resumed."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax import distributed, statistics
from corm_jax.data.dataset import evaluation_loader
from corm_jax.data.features import FeatureLoader, with_features
from corm_jax.data.pairs import COMPANIONS, PairedLoader
from corm_jax.data.pipeline import Loader, Split
from corm_jax.data.ranked import ENDS, RankedLoader, rank
from corm_jax.errors import UserError
from corm_jax.evaluation_examples import write_examples
from corm_jax.evaluation_files import differing_keys, provenance, save_outcomes
from corm_jax.feature_table import FILE_NAME, write_feature_table
from corm_jax.files import locked, read_json, write_json
from corm_jax.masks.building import feature_maps
from corm_jax.masks.building.feature_maps import FeatureMaps
from corm_jax.protocols import PARAMETERS, PROTOCOLS, measure
from corm_jax.protocols.summary import METRICS, curves, summarize
from corm_jax.protocols.types import Measured
from corm_jax.sharding import host_shard
from corm_jax.subjects import Subject

Batches = Loader | PairedLoader | RankedLoader | FeatureLoader
DEFAULT = ("complement", "ablations")
OPTIONS = {"spurious_gap": "--spuriosity", "single_feature": "--features"}
OFFERED = tuple(name for name in PROTOCOLS if name != "clean")  # which complement measures too


def evaluate(
    subject: Subject,
    config: ConfigDict,
    split: Split,
    *,
    split_name: str,
    protocols: Sequence[str],
    output: Path,
    mesh: Mesh,
    spuriosity: Path | None = None,
    features: Path | None = None,
) -> dict[str, Any] | None:
    """Evaluates a model by each protocol that `output` does not hold yet.

    Several processes share the images of each batch; every one calls it, the first one writes.

    Args:
      subject: the model.
      config: with `data` and `eval`.
      split: the images.
      split_name: its name.
      protocols: of `OFFERED`.
      output: a directory; receives results.json, PROTOCOL.npz, the outcome of every image, and
        examples.npz, what the model is shown of a few of them; of the `single_feature` protocol
        also single_feature.csv, see `corm_jax.feature_table`.
      mesh: where to evaluate.
      spuriosity: the ranking that `spurious_gap` takes, see `corm_jax.data.ranked.rank`.
      features: the build whose maps `single_feature` takes, see
        `corm_jax.masks.building.feature_maps.read`.

    Returns:
      the content of results.json: {"provenance", "protocols": {name: {"parameters", "metrics",
      "intervals", "definitions", of some "curves" and "rcs_is_saturated"}}}; None in all processes
      but the first.

    Raises:
      UserError: if `output` is of another evaluation, or the data lacks what a protocol needs.
    """
    built = None if features is None else feature_maps.read(features)  # before hours of work
    given = {"spurious_gap": spuriosity, "single_feature": built}
    first, results = distributed.is_first(), {"protocols": {}}
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(locked(output / ".lock"))
            about = provenance(subject, config, split, split_name)
            results = _started(output / "results.json", about)
        done = distributed.merge(dict.fromkeys(results["protocols"], ""))
        for name in protocols:
            loader, number = evaluation_loader(config, split, host_shard(mesh))
            if name in done:
                if first and given.get(name):
                    _, parameters = _prepared(name, config, loader, spuriosity, built)
                    _check_same(output, name, results["protocols"][name], parameters)
                continue
            loader, parameters = _prepared(name, config, loader, spuriosity, built)
            batches = tqdm(
                loader.batches(0, number),
                total=number,
                desc=name,
                unit="batch",
                disable=None if first else True,  # None: no bar in a log file
            )
            step = subject.make_step(name, config)
            measured = measure(step, subject.variables, batches, mesh)
            if first:
                save_outcomes(output / f"{name}.npz", measured)
                if isinstance(loader, FeatureLoader):
                    table, names = output / FILE_NAME, split.images.class_names
                    write_feature_table(table, measured, loader.features, names)
                results["protocols"][name] = {"parameters": parameters, **_found(measured)}
                write_json(output / "results.json", results)
        if first:
            # One process computes them, with the variables that it holds itself.
            alone = jax.device_put(jax.device_get(subject.variables))
            write_examples(output, subject._replace(variables=alone), config, split)
    return results if first else None


def possible(
    subject: Subject, split: Split, *, spuriosity: Path | None, features: Path | None
) -> list[str]:
    """Returns the protocols that a model and its data allow; says which they do not."""
    missing = []
    if not split.masks.has("spurious").any():
        missing += [(name, "no spurious masks") for name in ("annotated", "normalized")]
    if not subject.is_native:
        missing.append(("saliency", "a model of another library"))
    if spuriosity is None:
        missing.append(("spurious_gap", "no --spuriosity"))
    if features is None:
        missing.append(("single_feature", "no --features"))
    for name, reason in missing if distributed.is_first() else ():
        print(f"left out: {name} ({reason})")
    return [name for name in OFFERED if name not in dict(missing)]


def _prepared(
    protocol: str,
    config: ConfigDict,
    loader: Loader,
    spuriosity: Path | None,
    built: FeatureMaps | None,
) -> tuple[Batches, dict[str, Any]]:
    """Returns (a loader of the batches that a protocol takes, what its numbers depend on)."""
    parameters = dict(PARAMETERS.get(protocol, {}))
    if protocol in COMPANIONS:
        return COMPANIONS[protocol](config, loader), parameters
    if protocol == "spurious_gap":
        if spuriosity is None:
            raise UserError(
                "the spurious_gap protocol needs a ranking of the images: --spuriosity=FILE, the "
                "spuriosity.csv that python -m corm_jax.masks spuriosity writes"
            )
        digest = hashlib.sha256(spuriosity.read_bytes()).hexdigest()
        parameters |= {"ends": ENDS, "ranking": f"sha256:{digest}"}
        return rank(loader, spuriosity), parameters
    if protocol == "single_feature":
        if built is None:
            raise UserError(
                "the single_feature protocol needs maps of annotated features: --features=WORKDIR "
                "of python -m corm_jax.masks build --config.masks.feature_maps=True"
            )
        features = with_features(config, loader, built)
        return features, {**parameters, "features": features.fingerprint()}
    return loader, parameters


def _check_same(
    output: Path, protocol: str, found: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """Refuses a finished protocol that was measured by another file than the one given now."""
    if found["parameters"] != parameters:
        raise UserError(
            f"{output}/results.json has {protocol} by another {OPTIONS[protocol]}; choose another "
            "--output"
        )


def _found(measured: Measured) -> dict[str, Any]:
    metrics = summarize(measured)
    found = {
        "metrics": metrics,
        "intervals": statistics.intervals(measured),
        "definitions": {name: METRICS[name].definition for name in metrics},
    }
    if found_curves := curves(measured):
        found["curves"] = found_curves
    if "rcs" in metrics:
        found["rcs_is_saturated"] = statistics.is_saturated(metrics["core"], metrics["spurious"])
    return found


def _started(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Returns the results so far; refuses those of something else."""
    if not path.exists():
        return {"provenance": about, "protocols": {}}
    results = read_json(path)
    differing = differing_keys(results.get("provenance", {}), about)
    if differing:
        raise UserError(
            f"{path} is of another evaluation ({', '.join(differing)} differ); choose another "
            "--output"
        )
    return results


def format_results(results: dict[str, Any]) -> str:
    """Returns the metrics with their intervals as a table."""
    lines = [("metric", "value", "95 % over images", "over classes")]
    for found in results["protocols"].values():
        for name, value in found["metrics"].items():
            if METRICS[name].kind != "count":
                spans = ("", "")
                if over := found["intervals"].get(name):
                    spans = (format_span(name, over["images"]), format_span(name, over["classes"]))
                lines.append((name, format_value(name, value), *spans))
    return format_rows(lines)


def format_value(name: str, value: float) -> str:
    """Returns a metric's value for people: a share in percent."""
    return f"{value:.3f}" if METRICS[name].kind == "score" else f"{100 * value:.1f}%"


def format_span(name: str, interval: Sequence[float]) -> str:
    """Returns an interval of a metric for people."""
    low, high = (format_value(name, value).removesuffix("%") for value in interval)
    return f"{low} to {high}"


def format_rows(lines: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in lines)
    return "\n".join(row.rstrip() for row in rows)

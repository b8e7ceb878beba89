"""Measures how far a model leans on the background, by protocols, with intervals.

python -m corm_jax.evaluate runs/demo/vit_corm --output=evaluations/corm
python -m corm_jax.evaluate deit.safetensors --data=folder:DIR --output=evaluations/deit
python -m corm_jax.evaluate timm:resnet50 --weights=FILE --data=folder:DIR --output=evaluations/rn50
python -m corm_jax.evaluate compare evaluations/erm evaluations/corm

MODEL is the workdir of a finished run, a model file of ours (python -m corm_jax.convert from-torch
makes one), or LIBRARY:NAME with its --weights: timm's, torchvision's or open_clip's. A run is
evaluated on its own validation images unless --data says otherwise. OUTPUT receives results.json
(metrics, 95 % intervals, where everything comes from) and PROTOCOL.npz (each image's outcomes). The
same command goes on where it was stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax import statistics
from corm_jax.config import base_config, check_config
from corm_jax.data.dataset import evaluation_loader, open_dataset
from corm_jax.data.pairs import COMPANIONS
from corm_jax.data.pipeline import Split
from corm_jax.errors import UserError, lookup
from corm_jax.evaluation_files import (
    SOURCES,
    differing_keys,
    provenance,
    read_outcomes,
    save_outcomes,
)
from corm_jax.files import locked, read_json, write_json
from corm_jax.protocols import PROTOCOLS, measure
from corm_jax.protocols.summary import METRICS, curves, summarize
from corm_jax.protocols.types import Measured
from corm_jax.runs import WHICH
from corm_jax.sharding import create_mesh
from corm_jax.subjects import Subject, load_native, native_subject, torch_subject
from corm_jax.terminal import set_up_terminal

DEFAULT = ("complement", "ablations")
MASKED = tuple(name for name in PROTOCOLS if name != "clean")


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    set_up_terminal()
    try:
        if argv[:1] == ["compare"]:
            _compare(_comparison_parser().parse_args(argv[1:]))
        else:
            _evaluate(_parser().parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m corm_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="WORKDIR, FILE, timm:NAME, torchvision:NAME, open_clip:NAME")
    add("--output", type=_path, required=True, metavar="OUTPUT", help="a directory")
    add("--which", choices=WHICH, default="latest", help="checkpoint of a run (%(default)s)")
    add("--weights", type=_path, help="state dict of another library's model")
    add("--device", default="cpu", help="PyTorch's, of another library's model (%(default)s)")
    add("--data", help="folder:DIR or tfds:NAME")
    add("--like", type=_path, metavar="WORKDIR", help="a run whose data and noise to take")
    add("--split", choices=("validation", "train"), default="validation", help="(%(default)s)")
    add("--masks", type=_path, help="mask records (python -m corm_jax.masks import)")
    add(
        "--protocol",
        default=",".join(DEFAULT),
        metavar="NAME,...",
        help=f"all, or one or more of {', '.join(MASKED)} (%(default)s)",
    )
    add("--image_size", type=int, help="in pixels (the model's own)")
    add("--sigma", type=float, help="standard deviation of the noise (0.25)")
    add("--trials", type=int, help="draws of noise for each image (10)")
    add("--seed", type=int, help="of the noise and of the partners (0)")
    add("--batch_size", type=int, help="images at once, over all devices")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _evaluate(arguments: argparse.Namespace) -> None:
    """Evaluates a model by each protocol that is not finished yet, and prints the metrics."""
    protocols = list(dict.fromkeys(arguments.protocol.split(",")))
    for name in protocols:
        lookup(dict.fromkeys(MASKED), name, "protocol")
    if ":" in arguments.model and not Path(arguments.model).exists():
        native, config = None, _config(arguments, None)
    else:
        native = load_native(_path(arguments.model), arguments.which)
        config = _config(arguments, native)
    dataset = open_dataset(config)
    split: Split = getattr(dataset, arguments.split)
    mesh = create_mesh(-1, 1)
    if config.eval.batch_size % mesh.size:
        raise UserError(
            f"--batch_size={config.eval.batch_size} is not a multiple of the {mesh.size} devices"
        )
    subject = _subject(arguments, native, dataset.class_names, mesh, config)
    about = provenance(subject, config, split, arguments.split)
    with locked(arguments.output / ".lock"):
        results = _started(arguments.output / "results.json", about)
        for name in protocols:
            if name not in results["protocols"]:
                measured = _measure(subject, name, config, split, mesh)
                save_outcomes(arguments.output / f"{name}.npz", measured)
                results["protocols"][name] = _found(measured)
                write_json(arguments.output / "results.json", results)
    print(format_results(results))
    print(f"results: {arguments.output}/results.json; each image's: {arguments.output}/*.npz")


def _config(arguments: argparse.Namespace, native: Any) -> ConfigDict:
    """Returns a whole config of which `data` and `eval` are used."""
    run = arguments.like or _path(arguments.model)
    config = base_config("erm")
    config.model.name = "resnet50"  # takes images of any size
    config.data.image_size, config.data.center_crop_share = 224, 0.875
    if run.is_dir():
        of_run = read_json(run / "config.json")
        config.data, config.eval = ConfigDict(of_run["data"]), ConfigDict(of_run["eval"])
    elif arguments.like or not arguments.data:
        raise UserError(
            f"name the data to evaluate {arguments.model} on: --data=folder:DIR, or --like=WORKDIR "
            "of a run"
        )
    config.data.selection_share = 0.0
    config.eval.extra = ""
    if native is not None:
        config.model.name = native.description.model
        config.data.image_size = native.description.image_size
        config.data.center_crop_share = native.description.center_crop_share
    if arguments.data:
        source, _, name = arguments.data.partition(":")
        key = lookup(SOURCES, source, "source of --data=SOURCE:NAME")
        config.data.update({"source": source, key: name, "counterfactual_split": "", "masks": ""})
        config.data.validation_masks = ""
    if arguments.masks:
        config.data.masks, config.data.validation_masks = str(arguments.masks), ""
    for key in ("sigma", "trials", "seed", "batch_size"):
        if (value := getattr(arguments, key)) is not None:
            config.eval[key] = value
    if arguments.image_size is not None:
        config.data.image_size = arguments.image_size
    check_config(config)
    return config


def _subject(
    arguments: argparse.Namespace,
    native: Any,
    class_names: tuple[str, ...],
    mesh: Any,
    config: ConfigDict,
) -> Subject:
    if native is not None:
        if arguments.image_size not in (None, native.description.image_size):
            raise UserError(
                f"the model takes images of {native.description.image_size} pixels, not "
                f"{arguments.image_size}; leave --image_size out"
            )
        return native_subject(native, class_names, mesh)
    if arguments.weights is None:
        raise UserError(f"{arguments.model} has random weights; name a file: --weights=FILE")
    return torch_subject(
        arguments.model,
        arguments.weights,
        class_names,
        image_size=config.data.image_size,
        device=arguments.device,
    )


def _measure(
    subject: Subject, protocol: str, config: ConfigDict, split: Split, mesh: Any
) -> Measured:
    loader, count = evaluation_loader(config, split, (0, 1))
    if protocol in COMPANIONS:
        loader = COMPANIONS[protocol](config, loader)
    batches = tqdm(loader.batches(0, count), total=count, desc=protocol, unit="batch", disable=None)
    return measure(subject.make_step(protocol, config), subject.variables, batches, mesh)


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
            if name in found["intervals"]:
                spans = [_span(name, found["intervals"][name][k]) for k in ("images", "classes")]
                lines.append((name, _value(name, value), *spans))
    return _table(lines)


def _value(name: str, value: float) -> str:
    return f"{value:.3f}" if METRICS[name].kind == "score" else f"{100 * value:.1f}%"


def _span(name: str, interval: Sequence[float]) -> str:
    low, high = (_value(name, value).removesuffix("%") for value in interval)
    return f"{low} to {high}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in lines)
    return "\n".join(row.rstrip() for row in rows)


def _comparison_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m corm_jax.evaluate compare",
        description="Prints the second evaluation's metrics less the first's, image by image.",
    )
    for name in ("first", "second"):
        parser.add_argument(name, type=_path, metavar="OUTPUT")
    return parser


def _compare(arguments: argparse.Namespace) -> None:
    pair = [read_json(path / "results.json") for path in (arguments.first, arguments.second)]
    differing = [
        key
        for key in differing_keys(*(results["provenance"] for results in pair))
        if not key.startswith(("model.", "preprocessing."))
    ]
    if differing:
        raise UserError(
            f"{arguments.first} and {arguments.second} do not compare: {', '.join(differing)} "
            "differ; evaluate both models on the same data by the same protocol"
        )
    lines = [("metric", "first", "second", "difference", "95 % over images", "over classes")]
    for protocol in (name for name in pair[0]["protocols"] if name in pair[1]["protocols"]):
        found = statistics.differences(
            *(read_outcomes(d / f"{protocol}.npz") for d in (arguments.first, arguments.second))
        )
        for name, spans in found.items():
            first, second = (results["protocols"][protocol]["metrics"][name] for results in pair)
            values = [_value(name, value) for value in (first, second, second - first)]
            lines.append((name, *values, *(_span(name, spans[k]) for k in ("images", "classes"))))
    print(_table(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

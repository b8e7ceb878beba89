"""Measures how far a model leans on the background, by protocols, with intervals.

python -m corm_jax.evaluate runs/demo/vit_corm --output=evaluations/corm
python -m corm_jax.evaluate deit.safetensors --data=folder:DIR --output=evaluations/deit
python -m corm_jax.evaluate timm:resnet50 --weights=FILE --data=folder:DIR --output=evaluations/rn50
python -m corm_jax.evaluate compare evaluations/erm evaluations/corm
python -m corm_jax.evaluate --config=configs/zoo.py --weights=DIR --data=tfds:NAME --output=zoo

MODEL is the workdir of a finished run, a model file of ours (python -m corm_jax.convert from-torch
makes one), or LIBRARY:NAME with its --weights: timm's, torchvision's or open_clip's. A run is
evaluated on its own validation images unless --data says otherwise. A zoo is a list of models whose
weights --weights=DIR holds, or some of them; each gets OUTPUT/NAME. OUTPUT receives results.json
(metrics, 95 % intervals, where everything comes from), PROTOCOL.npz (each image's outcomes),
examples.npz (what the model is shown of a few images) and, of the single_feature protocol,
single_feature.csv; python -m corm_jax.report makes a page of them. WORKDIR may be gs://BUCKET/NAME.
The same command goes on where it was stopped. Several processes share the evaluation of a model of
ours, as they share a run.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from corm_jax import distributed, zoo
from corm_jax.buckets import is_remote
from corm_jax.command_line import load_config
from corm_jax.comparison import compare
from corm_jax.config import base_config, check_config
from corm_jax.data.dataset import open_dataset
from corm_jax.data.pipeline import Split
from corm_jax.errors import UserError, lookup
from corm_jax.evaluation import DEFAULT, OFFERED, evaluate, format_results, possible
from corm_jax.evaluation_files import SOURCES
from corm_jax.files import local_path, read_json, run_path
from corm_jax.runs import WHICH
from corm_jax.sharding import create_mesh
from corm_jax.subjects import Subject, load_native, native_subject, torch_subject
from corm_jax.terminal import set_up_terminal


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    set_up_terminal()
    try:
        if argv[:1] == ["compare"]:
            pair = _comparison_parser().parse_args(argv[1:])
            print(compare(pair.first, pair.second))
            return 0
        arguments = _parser().parse_args(argv)
        with distributed.EndingTogether():
            distributed.start_from_environment()
            if arguments.distributed:
                distributed.start_from_cluster()
            if jax.distributed.is_initialized():
                # JAX's handler leaves the end to a step of training; here nothing is to be saved.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            distributed.let_first_speak()
            return _run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> int:
    if bool(arguments.config) == bool(arguments.model):
        raise UserError("name one MODEL, or a zoo by --config=configs/zoo.py")
    if arguments.config:
        return min(1, _evaluate_zoo(arguments))
    results = _evaluate(arguments)
    if results is not None:
        print(format_results(results))
        print(f"results: {arguments.output}/results.json; of each image: {arguments.output}/*.npz")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m corm_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    kinds = "WORKDIR, FILE, timm:NAME, torchvision:NAME, open_clip:NAME"
    add("model", nargs="?", metavar="MODEL", help=kinds)
    add("--config", metavar="FILE", help="a zoo in place of MODEL: configs/zoo.py")
    add(
        "--output",
        type=_file("--output"),
        required=True,
        metavar="OUTPUT",
        help="a directory",
    )
    add("--which", choices=WHICH, default="latest", help="checkpoint of a run (%(default)s)")
    add(
        "--weights",
        type=_file("--weights"),
        help="state dict of another library's model; a zoo's directory",
    )
    add("--device", default="cpu", help="PyTorch's, of another library's model (%(default)s)")
    add("--data", help="folder:DIR or tfds:NAME")
    add(
        "--like",
        type=partial(run_path, what="--like"),
        metavar="WORKDIR",
        help="a run whose data and noise to take",
    )
    add("--split", choices=("validation", "train"), default="validation", help="(%(default)s)")
    add(
        "--masks",
        type=_file("--masks"),
        help="mask records (python -m corm_jax.masks import)",
    )
    add(
        "--spuriosity",
        type=_file("--spuriosity"),
        metavar="CSV",
        help="ranking of images, for spurious_gap",
    )
    add(
        "--features",
        type=_file("--features"),
        metavar="WORKDIR",
        help="of masks build, for single_feature",
    )
    add(
        "--protocol",
        default=",".join(DEFAULT),
        metavar="NAME,...",
        help=f"all, or one or more of {', '.join(OFFERED)} (%(default)s)",
    )
    add("--distributed", action="store_true", help="join the other processes of the cluster")
    add("--image_size", type=int, help="in pixels (the model's own, or 224)")
    add(
        "--center_crop_share",
        type=float,
        help="of the images' shorter side (the model's, or 0.875)",
    )
    add("--sigma", type=float, help="standard deviation of the noise (0.25)")
    add("--trials", type=int, help="draws of noise for each image (10)")
    add("--seed", type=int, help="of the noise and of the partners (0)")
    add("--batch_size", type=int, help="images at once, over all devices")
    return parser


def _file(what: str) -> Callable[[str], Path]:
    return partial(local_path, what=what)


def _evaluate_zoo(arguments: argparse.Namespace) -> int:
    """Evaluates the models of a zoo; returns how many failed."""
    entries = zoo.read_entries(load_config(arguments.config), arguments.config)
    if arguments.weights is None:
        raise UserError(
            f"name the directory of the models' weights: --weights=DIR, with files such as "
            f"{entries[0].file} from {entries[0].source}"
        )

    if jax.process_count() > 1:
        raise UserError("a zoo is evaluated by one process; start no others")

    def evaluate_one(entry: zoo.Entry, weights: Path) -> dict[str, Any]:
        own = {key: getattr(entry, key) for key in ("model", "image_size", "center_crop_share")}
        output = arguments.output / entry.name
        flags = vars(arguments) | own | {"weights": weights, "output": output}
        return _evaluate(argparse.Namespace(**flags))

    return zoo.evaluate_zoo(entries, arguments.weights, evaluate_one)


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Evaluates a model by each protocol that is not finished yet; see `evaluate`."""
    protocols = list(dict.fromkeys(arguments.protocol.split(",")))
    for name in () if protocols == ["all"] else protocols:
        lookup(dict.fromkeys(OFFERED), name, "protocol")
    if _is_of_library(arguments.model):
        native, config = None, _config(arguments, None)
    else:
        native = load_native(run_path(arguments.model, "MODEL"), arguments.which)
        config = _config(arguments, native)
    if native is None and jax.process_count() > 1:
        raise UserError(
            f"{arguments.model} runs in one process; several evaluate runs and model files of ours "
            "(python -m corm_jax.convert from-torch makes one)"
        )
    with distributed.first_alone("open_dataset"):  # it may have to prepare the data
        dataset = open_dataset(config)
    split: Split = getattr(dataset, arguments.split)
    mesh = create_mesh(-1, 1)
    if config.eval.batch_size % mesh.size:
        raise UserError(
            f"--batch_size={config.eval.batch_size} is not a multiple of the {mesh.size} devices"
        )
    subject = _subject(arguments, native, dataset.class_names, mesh, config)
    if protocols == ["all"]:
        given = {"spuriosity": arguments.spuriosity, "features": arguments.features}
        protocols = possible(subject, split, **given)
    return evaluate(
        subject,
        config,
        split,
        split_name=arguments.split,
        protocols=protocols,
        output=arguments.output,
        mesh=mesh,
        spuriosity=arguments.spuriosity,
        features=arguments.features,
    )


def _is_of_library(model: str) -> bool:
    """Returns whether MODEL is LIBRARY:NAME."""
    return ":" in model and not is_remote(model) and not Path(model).exists()


def _config(arguments: argparse.Namespace, native: Any) -> ConfigDict:
    """Returns a whole config of which `data` and `eval` are used."""
    run = arguments.like
    if run is None and not _is_of_library(arguments.model):
        run = run_path(arguments.model, "MODEL")
    config = base_config("erm")
    config.model.name = "resnet50"  # takes images of any size
    config.data.image_size, config.data.center_crop_share = 224, 0.875
    if run is not None and run.is_dir():
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
    for key in ("image_size", "center_crop_share"):
        if (value := getattr(arguments, key)) is not None:
            config.data[key] = value
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


def _comparison_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m corm_jax.evaluate compare",
        description="Prints the second evaluation's metrics less the first's, image by image.",
    )
    for name in ("first", "second"):
        parser.add_argument(name, type=_file("OUTPUT"), metavar="OUTPUT")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

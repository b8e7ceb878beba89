"""Command line of conversion: `python -m corm_jax.convert from-torch|to-torch`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from corm_jax import model_file
from corm_jax.description import INTERPOLATIONS, Description
from corm_jax.errors import UserError, lookup
from corm_jax.export import add_head_bias, fold_normalizer, library_of, timm_config
from corm_jax.files import read_json, replacing
from corm_jax.models import OWN, default_image_size
from corm_jax.models.normalizer import Statistics
from corm_jax.models.zero_shot import TEMPLATES
from corm_jax.runs import WHICH, load_run
from corm_jax.state_dicts import ENCODERS, encode
from corm_jax.terminal import set_up_terminal
from corm_jax.torch_weights import to_torch

FROM_TORCH = """\
converts a PyTorch state dict to a model file of ours: Flax variables by path, with the classes, the
normaliser and the preprocessing in its metadata. FILE is a .safetensors, .npz, .pth or .pt file of
timm, torchvision, open_clip, or MadryLab's robustness, whose own normaliser is kept; .pth and .pt
need PyTorch and are read without running what a pickle may hold. A CLIP becomes a classifier by the
names in --classes"""
TO_TORCH = """\
writes the weights of a finished run, or of a model file of ours, under timm's names, and beside
them OUT.json as timm's config.json: the architecture, classes, normaliser and preprocessing, and a
run's metrics. In timm: create_model(NAME, num_classes=N, checkpoint_path="OUT.safetensors")"""


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    set_up_terminal()
    try:
        arguments = _parser().parse_args(argv)
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m corm_jax.convert")
    commands = parser.add_subparsers(required=True, metavar="from-torch|to-torch")
    command = commands.add_parser(
        "from-torch", help="a state dict to a model file", description=FROM_TORCH
    )
    command.add_argument("input", type=_path, metavar="FILE")
    command.add_argument("--model", required=True, help="python -m corm_jax.models list")
    command.add_argument("--output", type=_path, required=True, help="a .safetensors file")
    command.add_argument(
        "--classes", type=_path, help="names of the classes: one a line, or a JSON list (.json)"
    )
    command.add_argument(
        "--templates",
        type=_path,
        help="of a CLIP's prompts for a class, one a line, with {} for its name (default: "
        f"{TEMPLATES[0]!r} and {len(TEMPLATES) - 1} more)",
    )
    command.add_argument(
        "--image_size", type=_pixels, help="in pixels (default: what the model is made for)"
    )
    command.add_argument(
        "--center_crop_share",
        type=_share,
        default=0.875,
        help="evaluation: central square's side over the shorter side (default: %(default)s)",
    )
    command.add_argument("--interpolation", choices=INTERPOLATIONS, default="bilinear")
    for name in Statistics._fields:
        command.add_argument(
            f"--{name}", type=_triple, metavar="R,G,B", help="of the normaliser, in [0, 1] units"
        )
    command.set_defaults(run=from_torch)
    command = commands.add_parser(
        "to-torch", help="a run or model file to a state dict", description=TO_TORCH
    )
    command.add_argument("input", type=_path, metavar="WORKDIR|FILE")
    command.add_argument(
        "--output", type=_path, required=True, help=f"a {', '.join(ENCODERS)} file"
    )
    command.add_argument(
        "--which",
        choices=WHICH,
        default="latest",
        help="checkpoint of a run, averaged where the run averaged (default: %(default)s)",
    )
    command.add_argument(
        "--fold_normalizer",
        action="store_true",
        help="into the first layer: the exported model takes images in [0, 1] as they are",
    )
    command.set_defaults(run=write_torch)
    for command in commands.choices.values():
        command.add_argument("--overwrite", action="store_true", help="replace what is there")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _pixels(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of pixels")
    return int(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def _triple(text: str) -> tuple[float, ...]:
    values = tuple(map(float, text.split(",")))
    if len(values) != 3 or not np.isfinite(values).all():
        raise argparse.ArgumentTypeError(f"{text} is not R,G,B, such as 0.485,0.456,0.406")
    return values


def from_torch(arguments: argparse.Namespace) -> None:
    """Runs from-torch.

    Raises:
      UserError: if the input cannot be read or is of another model, or the output cannot be
        written.
    """
    output = arguments.output
    if output.suffix != ".safetensors":
        raise UserError(f"--output={output} must be a .safetensors file")
    _refuse_existing([output], arguments.overwrite)
    model = model_file.import_state_dict(
        arguments.input,
        arguments.model,
        class_names=arguments.classes and read_classes(arguments.classes),
        templates=read_classes(arguments.templates) if arguments.templates else TEMPLATES,
        statistics=_statistics(arguments),
        image_size=arguments.image_size or default_image_size(arguments.model),
        center_crop_share=arguments.center_crop_share,
        interpolation=arguments.interpolation,
    )
    model_file.write(output, model)
    _print_summary(model.description, model.variables, output)


def _statistics(arguments: argparse.Namespace) -> Statistics | None:
    given = (arguments.mean, arguments.std)
    if given == (None, None):
        return None
    if None in given or min(arguments.std) <= 0:
        raise UserError("give --mean and --std together, --std above 0")
    return Statistics(*given)


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads names of classes: one a line, or a JSON list in a .json file.

    Raises:
      UserError: if it cannot be read or holds something else.
    """
    if path.suffix == ".json":
        names = read_json(path)
    else:
        try:
            names = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(names, list) or not all(isinstance(n, str) and n.strip() for n in names):
        raise UserError(f"{path} must hold a name for each class: one a line, or a JSON list")
    return tuple(name.strip() for name in names)


def write_torch(arguments: argparse.Namespace) -> None:
    """Runs to-torch.

    Raises:
      UserError: if the input cannot be read, or the output cannot be written.
    """
    output, config = arguments.output, arguments.output.with_suffix(".json")
    lookup(ENCODERS, output.suffix, "format of --output:")
    _refuse_existing([output, config], arguments.overwrite)
    if not arguments.input.exists():
        raise UserError(f"{arguments.input} does not exist")
    if arguments.input.is_dir():
        run = load_run(arguments.input, arguments.which)
        description, variables = run.description, run.variables
        origin = {"step": run.step, "metrics": run.metrics}
    else:
        description, variables, origin = model_file.read(arguments.input)
    description, variables = add_head_bias(description, variables)
    if arguments.fold_normalizer:
        description, variables = fold_normalizer(description, variables)
    model = description.create("float32")
    library = library_of(model)
    state = to_torch(model, variables, library=library)
    about = {"model": description.model, "library": library, **origin}
    text = json.dumps({**timm_config(description), "corm_jax": about}, indent=2) + "\n"
    content = encode(state, output.suffix)
    with replacing(output) as weights_file, replacing(config) as config_file:
        weights_file.write_bytes(content)
        config_file.write_text(text)
    _print_summary(description, variables, output)
    print(f"what it is: {config}")
    if description.model in OWN:
        print(f"timm has no {description.model}: its layers have timm's names, its code is ours")


def _refuse_existing(paths: Sequence[Path], overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already; choose another --output or add --overwrite")


def _print_summary(description: Description, variables: Any, output: Path) -> None:
    arrays = jax.tree.leaves(variables)
    size = sum(array.size for array in arrays)
    print(
        f"{description.model}, {description.num_classes} classes, {description.image_size} pixels: "
        f"{size:,} numbers in {len(arrays)} arrays, written to {output}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

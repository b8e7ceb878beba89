"""Command line of models: `python -m corm_jax.models list`."""

import argparse
import fnmatch
import sys
from collections.abc import Sequence

from tqdm import tqdm

from corm_jax.errors import UserError
from corm_jax.models import MODELS, create_model, default_image_size
from corm_jax.models.cost import forward_cost
from corm_jax.terminal import set_up_terminal

CLASSES = 1000
LIST = f"""\
prints each model with the size of its images in pixels, its parameters in millions, and the
floating-point operations of a forward pass on one image in billions (GFLOPs): twice the
multiply-adds of convolutions and matrix products, which other tables give as GMACs; with {CLASSES}
classes"""


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    set_up_terminal()
    parser = argparse.ArgumentParser(prog="python -m corm_jax.models")
    commands = parser.add_subparsers(required=True, metavar="list")
    command = commands.add_parser("list", help="print all models and what they cost")
    command.description = LIST
    command.add_argument("--match", default="*", help="only these names, such as 'vit*'")
    arguments = parser.parse_args(argv)
    try:
        _list(arguments.match)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _list(pattern: str) -> None:
    names = fnmatch.filter(MODELS, pattern)
    if not names:
        raise UserError(f"no model's name matches {pattern!r}; valid: {', '.join(sorted(MODELS))}")
    rows = []
    for name in tqdm(names, desc="counting", unit="model", leave=False, disable=None):
        size = default_image_size(name)
        model = create_model(name, num_classes=CLASSES, dtype="float32")
        parameters, multiply_adds = forward_cost(model, size)
        rows.append((name, str(size), f"{parameters / 1e6:.2f}", f"{2 * multiply_adds / 1e9:.2f}"))
    width = max(map(len, names))
    for name, *columns in [("model", "image size", "parameters (M)", "GFLOPs"), *rows]:
        print(f"{name:<{width}}", *(f"{column:>14}" for column in columns))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

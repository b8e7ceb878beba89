"""Import masks of another format as mask records."""

import argparse
from pathlib import Path

from corm_jax.errors import lookup
from corm_jax.masks.sources import boxes, coco, folder, hard_imagenet, salient_imagenet

# Each has a docstring that describes its format, `add_arguments(parser)` and
# `open_source(directory, arguments) -> Source`.
FORMATS = {
    "salient_imagenet": salient_imagenet,
    "folder": folder,
    "boxes": boxes,
    "hard_imagenet": hard_imagenet,
    "coco": coco,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("--format", required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    lookup(FORMATS, arguments.format, "--format")
    raise NotImplementedError

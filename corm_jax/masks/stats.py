"""Count and measure the masks of a directory of mask records."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("records", type=Path, metavar="DIR", help="directory of mask records")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    raise NotImplementedError

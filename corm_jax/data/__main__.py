"""Command line of the data: `python -m corm_jax.data prepare --dataset=...`."""

import argparse
import logging
import sys
from pathlib import Path

from corm_jax.data.prepare import prepare
from corm_jax.data.tfds_source import default_data_dir
from corm_jax.errors import UserError


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m corm_jax.data")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare", help="prepare a TFDS data set and check it")
    command.add_argument("--dataset", required=True, help="such as imagenet2012")
    command.add_argument("--manual_dir", type=Path, help="where the downloaded archives are")
    command.add_argument(
        "--data_dir",
        type=Path,
        default=default_data_dir(),
        help="where prepared data sets go (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        # A shell leaves the "~" of --manual_dir=~/archives to us.
        manual_dir = arguments.manual_dir and arguments.manual_dir.expanduser()
        prepare(arguments.dataset, arguments.data_dir.expanduser(), manual_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

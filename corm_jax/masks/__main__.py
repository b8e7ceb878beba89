"""Command line of masks: `python -m corm_jax.masks import|verify|stats|show`."""

import argparse
import logging
import sys

from corm_jax.errors import UserError
from corm_jax.masks import import_command, show, stats, verify

# Each has a docstring whose first line is the help, `add_arguments(parser)` and `run(arguments)`.
COMMANDS = {"import": import_command, "verify": verify, "stats": stats, "show": show}


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m corm_jax.masks")
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    for name, module in COMMANDS.items():
        help_line = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(
            name,
            help=help_line,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Command line of masks: `python -m corm_jax.masks COMMAND`; --help lists the commands."""

import argparse
import sys
from collections.abc import Sequence

from corm_jax.errors import UserError
from corm_jax.masks import (
    annotate_command,
    annotations_command,
    build,
    import_command,
    show,
    spuriosity_command,
    stats,
    verify,
)
from corm_jax.terminal import set_up_terminal

# Each has a docstring whose first line is the help, `add_arguments(parser)` and `run(arguments)`.
COMMANDS = {
    "annotations": annotations_command,
    "build": build,
    "annotate": annotate_command,
    "import": import_command,
    "verify": verify,
    "stats": stats,
    "show": show,
    "spuriosity": spuriosity_command,
}


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    set_up_terminal()
    try:
        parser = _parser(argv)
        arguments, arguments.overrides = parser.parse_known_args(argv)
        if arguments.overrides and arguments.run is not build.run:
            parser.error(f"unrecognized arguments: {' '.join(arguments.overrides)}")
        arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on or starts anew", file=sys.stderr)
        return 130
    return 0


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Returns the parser for `argv`: the options of an import depend on its --format."""
    parser = argparse.ArgumentParser(prog="python -m corm_jax.masks")
    commands = parser.add_subparsers(required=True, metavar="|".join(COMMANDS))
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=(module.__doc__ or "").partition("\n")[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
        if name == "import" and argv[:1] == [name]:
            import_command.add_format_arguments(command, argv[1:])
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

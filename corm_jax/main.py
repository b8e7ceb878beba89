"""Trains and evaluates: `python -m corm_jax.main --config=configs/vit_corm.py`."""

import gc
import sys

from absl import app, flags
from ml_collections import config_flags

from corm_jax import distributed
from corm_jax.command_line import HELP, check_overrides, default_workdir
from corm_jax.errors import UserError, nearest, one_line
from corm_jax.files import run_path
from corm_jax.preemption import EXIT_CODE, Preempted, Preemption
from corm_jax.terminal import set_up_terminal

CONFIG = config_flags.DEFINE_config_file("config", None, "FILE or FILE:VARIANT.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept.")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes of the cluster.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; raises UserError with the nearest match for an unknown one."""
    if {"--help", "-help", "-h"} & set(argv):
        print(HELP)
        sys.exit(0)
    check_overrides(argv[1:])
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        raise UserError(f"unknown flag --{name}{nearest(name, flags.FLAGS)}") from error
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags start with --")
    return rest


def main(_: list[str]) -> None:
    """Runs the training that the flags describe."""
    set_up_terminal()  # here, because absl installs a handler of its own before
    preemption = Preemption()
    preemption.install()
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = run_path(WORKDIR.value, "--workdir") if WORKDIR.value else default_workdir(name)
    # Imported after the flags are checked: a mistyped flag need not wait for tensorflow.
    from corm_jax.report import format_table, summary_row
    from corm_jax.train import train

    if DISTRIBUTED.value:
        distributed.start_from_cluster()
    distributed.let_first_speak()

    results = train(CONFIG.value, workdir, preemption)
    if distributed.is_first():
        print(format_table([summary_row(results)]))
        print(f"results, pictures and TensorBoard events: {workdir}")


def run() -> None:
    """Runs `main`; an error that the user can put right is one line and exit code 1.

    After SIGTERM the exit code is `corm_jax.preemption.EXIT_CODE`: start the same command again.
    Of a run that hangs it is `corm_jax.watch.EXIT_CODE`.
    """
    try:
        with distributed.EndingTogether():
            distributed.start_from_environment()
            app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        # At once: an orderly exit can wait minutes for the threads of a save that was cut off.
        distributed.end("\nstopped; the same command goes on from the last checkpoint", 130)
    except Preempted as stop:
        distributed.end(str(stop), EXIT_CODE)
    # Ends the data loader, which the error's traceback kept alive, before the interpreter goes.
    gc.collect()
    sys.exit(1)


if __name__ == "__main__":
    run()

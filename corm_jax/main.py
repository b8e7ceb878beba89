"""Trains and evaluates: `python -m corm_jax.main --config=configs/vit_corm.py`."""

import logging
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from corm_jax.errors import UserError, nearest

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of the config, and after a colon its variant: configs/vit_corm.py:folder. "
    "Override a key with --config.KEY=VALUE.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept (default: runs/VARIANT/NAME, after the config)."
)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; raises UserError with the nearest match for an unknown one."""
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        raise UserError(f"unknown flag --{name}{nearest(name, flags.FLAGS)}") from error
    except (flags.Error, ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(str(error).strip()) from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags start with --")
    if CONFIG.value is None:
        raise UserError("name a config: --config=configs/vit_corm.py")
    return rest


def default_workdir() -> Path:
    """Returns runs/VARIANT/NAME for --config=configs/NAME.py:VARIANT."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / (variant or "demo").replace(",", "-") / Path(path).stem


def main(_: list[str]) -> None:
    """Runs the training that the flags describe."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("corm_jax").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.ERROR)
    # Imported after the flags are checked: a mistyped flag need not wait for jax to load.
    from corm_jax.report import format_table, summary_row
    from corm_jax.train import train

    workdir = Path(WORKDIR.value) if WORKDIR.value else default_workdir()
    results = train(CONFIG.value, workdir)
    print(format_table([summary_row(results)]))
    print(f"results, pictures and TensorBoard events: {workdir}")


def run() -> None:
    """Runs `main`; an error that the user can put right is one line and exit code 1."""
    warnings.simplefilter("ignore", category=DeprecationWarning)
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()

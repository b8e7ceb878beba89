"""Build mask records from an encoder: select features of classes, map where they are active.

python -m corm_jax.masks build      draws data and trains an encoder: minutes on a CPU
python -m corm_jax.masks build --config=configs/masks.py:imagenet --config.encoder.path=CHECKPOINT
python -m corm_jax.masks build --config=configs/masks.py:folder --config.encoder.path=RUN
    --config.data.folder=DIR

--config.KEY=VALUE changes a key; corm_jax/masks/building/config.py lists them all. A build that
was stopped, or killed, goes on when the same command is given again.
"""

import argparse
from pathlib import Path

from corm_jax.command_line import parse_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments; what else is given are `overrides`."""
    parser.add_argument(
        "--config",
        default="configs/masks.py",
        help="configs/masks.py, :imagenet or :folder may follow (default: the demo)",
    )
    parser.add_argument(
        "--workdir", type=Path, help="where the build is kept (default: runs/masks)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: for what the user can put right.
    """
    config = parse_config(arguments.config, arguments.overrides)
    # Imported after the flags are checked: a mistyped flag need not wait for tensorflow.
    from corm_jax.masks.building import pipeline, report

    variant = arguments.config.partition(":")[2]
    workdir = arguments.workdir or Path("runs") / "masks" / (variant or "demo")
    built = pipeline.build(config, workdir.expanduser())
    if built is not None:
        print("\n".join(report.summary(config, built)))
        print(f"mask records: {workdir}/masks; report and sample: {workdir}/report.md, masks.png")

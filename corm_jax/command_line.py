"""What the command line says of the config, checked before anything is loaded."""

import itertools
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from corm_jax.config import flatten
from corm_jax.errors import UserError, nearest, one_line

HELP = """\
usage: python -m corm_jax.main --config=FILE[:VARIANT[,OBJECTIVE]] [--workdir=DIR] [--config.KEY=VALUE ...]

Trains, evaluates and writes results.json, curves.png, examples.png and TensorBoard events.
The same command goes on with a run that was stopped.

  --config   configs/vit_corm.py, vit_erm.py, resnet_corm.py or resnet_erm.py; finetune.py:VARIANT,dfr
             or :VARIANT,core_head trains the head alone of what --config.init=DIR trained
  VARIANT    demo (the default: data that is drawn on this machine), folder or imagenet
  OBJECTIVE  erm, noise, corm, corm_plus, corm_two_term, corm_hi, rrr, pgd, background_swap, dfr,
             consistency, cam or cfce instead of the file's
  --workdir  where the run is kept (default: runs/VARIANT/FILE): a directory, or gs://BUCKET/RUN
  --distributed        one process of several: of a TPU pod, a SLURM or Kubernetes job; elsewhere set
                       CORM_COORDINATOR=HOST:PORT, CORM_NUM_PROCESSES and CORM_PROCESS_ID instead
  --config.KEY=VALUE   changes a key; corm_jax/config.py lists them all with their meaning

examples:
  python -m corm_jax.main --config=configs/vit_corm.py
  python -m corm_jax.main --config=configs/vit_corm.py --config.train.steps=100 --workdir=runs/short
  python -m corm_jax.main --config=configs/resnet_corm.py:folder --config.data.folder=DIR
  python -m corm_jax.report runs/demo/vit_erm runs/demo/vit_corm"""  # noqa: E501


def load_config(name: str) -> ConfigDict:
    """Returns the config that `--config=name` stands for.

    Args:
      name: FILE or FILE:VARIANT.

    Raises:
      UserError: if there is no such file, or it defines no `get_config`.
    """
    path, colon, variant = name.partition(":")
    if not Path(path).is_file():
        known = [str(p) for p in sorted(Path("configs").glob("*.py"))]
        raise UserError(f"config file {path} does not exist{nearest(path, known)}")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise UserError(f"config file {path} defines no get_config")
    return get_config(variant) if colon else get_config()


def default_workdir(name: str) -> Path:
    """Returns runs/VARIANT/NAME for --config=configs/NAME.py:VARIANT."""
    path, _, variant = name.partition(":")
    return Path("runs") / (variant or "demo").replace(",", "-") / Path(path).stem


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuses `--config.KEY=VALUE` for a key that the config does not have.

    Args:
      arguments: of the command line.

    Raises:
      UserError: names the nearest key; or says that there is no --config; or see `load_config`.
    """
    names = [
        argument.partition("=")[2] or following
        for argument, following in itertools.pairwise([*arguments, ""])
        if re.match("--?config(=|$)", argument)
    ]
    if not names:
        raise UserError("name a config, such as --config=configs/vit_corm.py; --help tells more")
    keys = flatten(load_config(names[-1]).to_dict())
    groups = {".".join(key.split(".")[:depth]) for key in keys for depth in (1, 2)}
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if override and override[1] not in keys.keys() | groups:
            key = override[1]
            raise UserError(f"unknown config key {key}{nearest_key(key, list(keys))}")


def parse_config(name: str, overrides: Sequence[str]) -> ConfigDict:
    """Returns the config of `--config=name` with `--config.KEY=VALUE` applied.

    Args:
      name: FILE or FILE:VARIANT.
      overrides: what the command line has beside --config and --workdir.

    Raises:
      UserError: for what is not a key or its value; names the nearest.
    """
    arguments = [f"--config={name}", *overrides]
    check_overrides(arguments)
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=arguments)
    try:
        rest = values(["command", *arguments])
    except flags.UnrecognizedFlagError as error:
        known = ("config", "workdir")
        raise UserError(
            f"unknown flag --{error.flagname}{nearest(error.flagname, known)}"
        ) from error
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}; flags start with --")
    return holder.value


def nearest_key(key: str, keys: list[str]) -> str:
    """Returns a hint: the nearest key beside it, else the nearest of all."""
    group = key.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == group]
    return nearest(key, siblings) or nearest(key, keys)

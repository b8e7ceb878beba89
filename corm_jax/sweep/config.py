"""The config of a sweep, and the runs that it stands for."""

import copy
import itertools
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from corm_jax.command_line import load_config, nearest_key
from corm_jax.config import check_config, flatten, refuse_other_config
from corm_jax.errors import UserError, lookup, nearest, one_line
from corm_jax.losses.presets import PRESETS
from corm_jax.protocols.summary import DEFINITIONS

SPLITS = {"selection": "selection", "validation": "validation"}
BEST = "best"  # as config.select.of: the arm of the best clean accuracy


class Arm(NamedTuple):
    """One point of the grid.

    Attributes:
      name: unique; names its directory.
      objective: a preset's name.
      control: see `config.control`.
      overrides: config key -> value, beside objective and control.
    """

    name: str
    objective: str
    control: str
    overrides: dict[str, Any]


class Run(NamedTuple):
    """One training: an arm with a seed."""

    arm: Arm
    seed: int
    config: ConfigDict
    workdir: Path


def sweep_config(base: str) -> ConfigDict:
    """Returns the config of a sweep with an empty grid.

    Args:
      base: FILE:VARIANT of the config that all runs start from.

    Raises:
      UserError: if that is no config with a variant; see `load_config`.
    """
    variant = base.partition(":")[2]
    if not variant or "," in variant:
        raise UserError(f"a sweep's base is FILE:VARIANT without an objective, not {base!r}")
    config = ConfigDict()
    config.base = base
    config.run = load_config(base)  # of all runs; the grid and the seeds change it
    with config.run.unlocked():
        del config.run["objective"], config.run["terms"], config.run["seed"]
    # A list of blocks, each a dict: "objective", and config keys, -> a value or a list of values.
    # A block stands for all combinations of its values, the grid for the arms of all blocks.
    config.grid = []
    config.seeds = (0, 1, 2)
    config.jobs = 1  # runs at once, each on its share of the CPU cores; 1 on an accelerator

    # The arm of the highest mean `metric` is selected, among those whose mean clean accuracy is at
    # most `clean_within` below that of the arm `of`.
    config.select = ConfigDict()
    config.select.split = "selection"  # measured on; or validation, which is optimistic
    config.select.metric = "core"  # higher is better
    config.select.clean_within = 0.01
    config.select.of = BEST  # an arm's name, or best: that of the highest mean clean accuracy
    return config


def expand(grid: list[dict[str, Any]]) -> list[Arm]:
    """Returns the arms of a grid, in its order.

    Args:
      grid: see `sweep_config`.

    Raises:
      UserError: for a block without objective, an unknown objective, or an arm that is there twice.
    """
    arms: dict[str, Arm] = {}
    for number, block in enumerate(grid):
        if "objective" not in block:
            raise UserError(
                f"config.grid[{number}] names no objective{nearest('objective', block)}"
            )
        if "seed" in block:
            raise UserError(f"config.grid[{number}].seed: seeds stand in config.seeds")
        lists = [v if isinstance(v, list | tuple) else [v] for v in block.values()]
        for values in itertools.product(*lists):
            arm = _arm(dict(zip(block, values, strict=True)))
            if arm.name in arms:
                raise UserError(f"config.grid[{number}]: {arm.name} is in the grid already")
            arms[arm.name] = arm
    if not arms:
        raise UserError("config.grid is empty: it stands for no run")
    return list(arms.values())


def _arm(values: dict[str, Any]) -> Arm:
    overrides = {k: v for k, v in values.items() if k not in ("objective", "control")}
    objective, control = values["objective"], values.get("control", "none")
    lookup(PRESETS, objective, "objective in config.grid:")
    parts = [objective, *([control] if control != "none" else [])]
    parts += [f"{key.removeprefix('terms.')}={value}" for key, value in overrides.items()]
    return Arm(",".join(parts).replace("/", "_"), objective, control, overrides)


def plan(config: ConfigDict, workdir: Path) -> list[Run]:
    """Returns all runs of a sweep, the first seed of every arm first; checks each of them.

    Args:
      config: see `sweep_config`.
      workdir: of the sweep; a run's is WORKDIR/ARM/seed_N.

    Raises:
      UserError: for a key or a value that cannot be; names the arm and the nearest key.
    """
    arms = expand(config.grid)
    _check(config, arms)
    runs = [
        Run(arm, seed, _run_config(config, arm, seed), workdir / arm.name / f"seed_{seed}")
        for seed in config.seeds
        for arm in arms
    ]
    for run in runs:
        try:
            check_config(run.config)
        except UserError as error:
            raise UserError(f"arm {run.arm.name}: {error}") from error
        refuse_other_config(run.config, run.workdir)
        if config.select.split == "selection" and not run.config.data.selection_share:
            raise UserError(
                "config.select.split=selection needs a share of the training images: "
                "--config.run.data.selection_share=0.2 (or --config.select.split=validation: "
                "what is selected on the images that it reports looks too good)"
            )
    return runs


def _check(config: ConfigDict, arms: list[Arm]) -> None:
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"config.seeds={config.seeds} must be one or more different numbers")
    if config.jobs < 1:
        raise UserError(f"config.jobs={config.jobs} must be >= 1")
    lookup(SPLITS, config.select.split, "config.select.split")
    lookup(DEFINITIONS, config.select.metric, "config.select.metric")
    lookup({BEST: None, **{arm.name: arm for arm in arms}}, config.select.of, "config.select.of")
    if not config.select.clean_within >= 0:
        raise UserError(f"config.select.clean_within={config.select.clean_within} must be >= 0")


def _run_config(config: ConfigDict, arm: Arm, seed: int) -> ConfigDict:
    run = copy.deepcopy(config.run)  # keeps what follows another key, such as the warm-up
    run.unlock()
    run.objective, run.seed = arm.objective, seed
    base = load_config(f"{config.base},{arm.objective}")
    run.terms, run.model.head_bias = base.terms, base.model.head_bias
    run.lock()
    overrides = (
        {**arm.overrides, "control": arm.control} if arm.control != "none" else arm.overrides
    )
    known = flatten(run.to_dict())
    for key, value in overrides.items():
        if key not in known:
            hint = nearest_key(key, list(known))
            raise UserError(f"arm {arm.name}: unknown config key {key}{hint}")
        try:
            run.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"arm {arm.name}: config.{key}={value!r}: {one_line(error)}") from error
    return run.copy_and_resolve_references()

"""Starts the command line in a process of its own, as a user does, at the smallest size."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from corm_jax.checkpoint import Checkpoints
from corm_jax.command_line import load_config
from corm_jax.sharding import create_mesh
from corm_jax.state import abstract_state

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = {
    "data.tfds_name": "spurious_shapes/tiny",
    "data.image_size": 16,
    "train.batch_size": 8,
    "train.log_every": 4,
    "eval.batch_size": 24,
    "eval.trials": 2,
    "eval.subset": 24,
}


def small_config(name: str, data_dir: Path, **changes: object) -> ConfigDict:
    """Returns the config `name` at the smallest size; `changes` has "__" for dots."""
    config = load_config(str(REPOSITORY / name))
    for key, value in {**SMALL, "data.data_dir": str(data_dir), **dotted(changes)}.items():
        config.update_from_flattened_dict({key: value})
    return config


def small_flags(name: str, data_dir: Path, workdir: Path, **changes: object) -> list[str]:
    """Returns the flags of the same config."""
    values = {**SMALL, "data.data_dir": str(data_dir), **dotted(changes)}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return [f"--config={name}", f"--workdir={workdir}", *overrides]


def dotted(changes: dict[str, object]) -> dict[str, object]:
    return {key.replace("__", "."): value for key, value in changes.items()}


def start(
    flags: Sequence[str],
    cache: Path | None = None,
    module: str = "corm_jax.main",
    **variables: str,
) -> subprocess.Popen[str]:
    """Starts the command; `cache` holds compiled programs, so that a second start is quick.

    `variables` are of the environment.
    """
    environment = {**os.environ, "XLA_FLAGS": "", "TFDS_DATA_DIR": "/nonexistent", **variables}
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    return subprocess.Popen(
        [sys.executable, "-m", module, *flags],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    flags: Sequence[str], cache: Path | None = None, module: str = "corm_jax.main"
) -> tuple[int, str, str]:
    """Runs the command; returns (exit code, stdout, stderr)."""
    process = start(flags, cache, module)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def saved_arrays(config: ConfigDict, workdir: Path) -> dict[str, np.ndarray]:
    """Returns every array of the newest checkpoint of a run by its path."""
    from corm_jax.data.drawing import SHAPES
    from corm_jax.models import create_model

    model = create_model(config.model.name, num_classes=len(SHAPES), dtype=config.model.dtype)
    abstract = abstract_state(config, model, create_mesh(-1, 1))
    checkpoints = Checkpoints(workdir / "checkpoints", best=config.checkpoint.best)
    state, _ = checkpoints.restore(abstract)
    checkpoints.close()
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

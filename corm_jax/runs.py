"""Finished runs of `corm_jax.main`: what they trained, restored from the workdir."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax.checkpoint import Checkpoints
from corm_jax.config import base_config
from corm_jax.description import Description
from corm_jax.errors import UserError, lookup
from corm_jax.files import read_json
from corm_jax.state import abstract_state


class Run(NamedTuple):
    """What a run trained.

    Attributes:
      description: of the model.
      model: with the computation dtype of the run.
      variables: that the run evaluates with, on the first device: averaged ones if it averaged.
      step: steps taken to get there.
      metrics: of these variables: the final ones, or those of the checkpoint that was best on a
        subset of the validation images.
    """

    description: Description
    model: nn.Module
    variables: dict[str, Any]
    step: int
    metrics: dict[str, float]


def load_run(workdir: Path, which: str = "latest") -> Run:
    """Loads what a finished run trained.

    Args:
      workdir: of the run.
      which: "latest", or "best" by `config.checkpoint.best`.

    Raises:
      UserError: if the run is not finished, or the checkpoint is not there or damaged.
    """
    select = lookup(WHICH, which, "checkpoint")
    if not (workdir / "results.json").is_file():
        raise UserError(
            f"{workdir} is not the workdir of a finished run (no results.json there); train it to "
            "the end: python -m corm_jax.main --config=FILE --workdir=DIR"
        )
    config = ConfigDict(read_json(workdir / "config.json"))
    missing = [key for key in base_config("erm").optimizer if key not in config.optimizer]
    if missing:
        raise UserError(
            f"{workdir} was trained by an older corm_jax (config.optimizer.{missing[0]} is missing)"
            "; train it again"
        )
    path = workdir / "model.json"
    description = Description.from_json(read_json(path), str(path))
    model = description.create(config.model.dtype)
    device = Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    directory = workdir / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"{directory} does not exist; train the model again")
    with contextlib.closing(Checkpoints(directory, best=config.checkpoint.best)) as checkpoints:
        step, metrics = select(checkpoints, config, workdir)
        state, _ = checkpoints.restore_step(step, abstract_state(config, model, device))
    return Run(description, model, state.eval_variables(), step, metrics)


def _latest(
    checkpoints: Checkpoints, config: ConfigDict, workdir: Path
) -> tuple[int, dict[str, float]]:
    del checkpoints  # the final metrics are those of the last step
    return config.train.steps, read_json(workdir / "results.json")["metrics"]


def _best(
    checkpoints: Checkpoints, config: ConfigDict, workdir: Path
) -> tuple[int, dict[str, float]]:
    found = checkpoints.best_step()
    if found is None:
        raise UserError(
            f"{workdir} has no best checkpoint: none was saved at a step of evaluation "
            f"(config.checkpoint.every={config.checkpoint.every}, config.eval.every="
            f"{config.eval.every}); take the latest"
        )
    return found


WHICH = {"latest": _latest, "best": _best}

"""What training starts from: trained variables, of a run of ours or of a file.

`config.init` names the workdir of a finished run, whose last step is taken (that of its
results.json; averaged variables where it averaged), or a file: a model file of ours, or a PyTorch
state dict of `config.model.name` (see `corm_jax.model_file` and `corm_jax.state_dicts`). The
optimizer starts afresh, at step 0. The input normaliser comes along.

The classifier starts afresh where the weights' classes are others, by number or by name; where
their names are unknown, their number decides. A vision transformer's position embeddings are
interpolated to another image size; its class token is left out where the run's model has none.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from corm_jax import model_file
from corm_jax.checkpoint import complete_steps
from corm_jax.description import Description
from corm_jax.errors import UserError
from corm_jax.files import read_json, run_path
from corm_jax.models import default_image_size
from corm_jax.models.layers import heads
from corm_jax.models.positions import resample_positions
from corm_jax.models.zero_shot import TEMPLATES
from corm_jax.runs import load_run
from corm_jax.state import TrainState
from corm_jax.torch_weights import check_fit

logger = logging.getLogger(__name__)

POSITIONS, CLASS_TOKEN = "params/pos_embed", "params/cls_token"


class Source(NamedTuple):
    """Trained variables.

    Attributes:
      description: of their model.
      variables: of the model, arrays; None if they are in the checkpoint that the run goes on from.
    """

    description: Description
    variables: dict[str, Any] | None


def load(config: ConfigDict, workdir: Path) -> Source | None:
    """Loads what a run starts from, None for random weights.

    Args:
      config: the run's config.
      workdir: the run's. If it holds a checkpoint, `config.init` is not read again.

    Raises:
      UserError: if `config.init` cannot be loaded, or is of another model than `config.model.name`.
    """
    if complete_steps(workdir / "checkpoints"):
        path = workdir / "model.json"
        return Source(Description.from_json(read_json(path), str(path)), None)
    if not config.init:
        return None
    path = run_path(config.init, "config.init")
    if not path.exists():
        raise UserError(f"config.init={config.init} does not exist")
    source = LOADERS[_kind(path)](path, config)
    if source.description.model != config.model.name:
        raise UserError(
            f"config.init={config.init} is of the model {source.description.model}, not of "
            f"config.model.name={config.model.name}; add --config.model.name="
            f"{source.description.model}"
        )
    return source


def _kind(path: Path) -> str:
    if path.is_dir():
        return "run"
    return "model_file" if model_file.is_model_file(path) else "state_dict"


def _load_run(path: Path, config: ConfigDict) -> Source:
    del config
    run = load_run(path)
    return Source(run.description, run.variables)


def _load_model_file(path: Path, config: ConfigDict) -> Source:
    del config
    model = model_file.read(path)
    return Source(model.description, model.variables)


def _load_state_dict(path: Path, config: ConfigDict) -> Source:
    model = model_file.import_state_dict(
        path,
        config.model.name,
        class_names=None,
        templates=TEMPLATES,
        statistics=None,
        image_size=default_image_size(config.model.name),
        center_crop_share=config.data.center_crop_share,
        interpolation="bilinear",
    )
    return Source(model.description, model.variables)


LOADERS: dict[str, Callable[[Path, ConfigDict], Source]] = {
    "run": _load_run,
    "model_file": _load_model_file,
    "state_dict": _load_state_dict,
}


def fit(
    source: Source,
    config: ConfigDict,
    model: nn.Module,
    abstract: TrainState,
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    """Fits trained variables to a run.

    Args:
      source: from `load`.
      config: the run's config.
      model: the run's.
      abstract: its train state, from `corm_jax.state.abstract_state`.
      class_names: of the run's data.

    Returns:
      variables as `corm_jax.state.create_state` takes them, numpy arrays, without the classifier
      where that starts afresh; none if the source has none.

    Raises:
      UserError: names all variables that are missing, unknown or of another shape.
    """
    if source.variables is None:
        return {}
    # On the host: a run's are on one device, and go to all of the mesh.
    given = flatten_dict(jax.device_get(source.variables), sep="/")
    expected = {
        key: leaf.shape for key, leaf in flatten_dict(abstract.variables(), sep="/").items()
    }
    reason = _why_afresh(source.description, config, class_names)
    if reason:
        logger.info("the classifier starts afresh: %s", reason)
        fresh = {key for key in given.keys() | expected.keys() if key.split("/")[1] in heads(model)}
        given = {key: array for key, array in given.items() if key not in fresh}
        expected = {key: shape for key, shape in expected.items() if key not in fresh}
    if CLASS_TOKEN in given and CLASS_TOKEN not in expected:
        logger.info("the class token is left out: the head sees the mean of the patches' tokens")
        del given[CLASS_TOKEN]
        given[POSITIONS] = given[POSITIONS][:, 1:]
    old, new = source.description.image_size, config.data.image_size
    if POSITIONS in given and old != new:
        sides = (old // model.patch_size, new // model.patch_size)
        logger.info("position embeddings are interpolated from %d to %d pixels", old, new)
        given[POSITIONS] = np.asarray(resample_positions(given[POSITIONS], *sides))
    try:
        check_fit(expected, {key: array.shape for key, array in given.items()})
    except UserError as error:
        raise UserError(f"config.init={config.init}: {error}") from error
    logger.info("starting from %s", config.init)
    return unflatten_dict(given, sep="/")


def _why_afresh(description: Description, config: ConfigDict, class_names: tuple[str, ...]) -> str:
    """Returns why the classifier cannot be kept, or is not to be; "" if it is."""
    known = description.class_names
    if config.fresh_head:
        return "config.fresh_head"
    if description.num_classes != len(class_names):
        return f"{description.num_classes} classes in {config.init}, {len(class_names)} here"
    if known is not None and known != class_names:
        pairs = zip(known, class_names, strict=True)
        number, (old, new) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        return f"class {number} is {old!r} in {config.init}, {new!r} here"
    return ""

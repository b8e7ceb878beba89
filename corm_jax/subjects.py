"""What `python -m corm_jax.evaluate` evaluates: runs, model files, and other libraries' models."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax import adapters, model_file
from corm_jax.description import Description
from corm_jax.errors import UserError
from corm_jax.models.normalizer import Statistics
from corm_jax.protocols import PROTOCOLS, make_eval_step
from corm_jax.protocols.types import EvalStep
from corm_jax.runs import load_run
from corm_jax.sharding import replicated


class Subject(NamedTuple):
    """A model to evaluate.

    Attributes:
      name: of the model.
      statistics: of its input normaliser.
      model: one of our modules, or of `corm_jax.adapters`.
      variables: what its steps take.
      weights: "sha256:" and the hash of its weights.
      make_step: (name of a protocol, config with `eval`) -> step.
      is_native: whether it is one of our models.
      packages: distributions that it runs on, beside those of `corm_jax.report.versions`.
    """

    name: str
    statistics: Statistics
    model: Any
    variables: dict[str, Any]
    weights: str
    make_step: Callable[[str, ConfigDict], EvalStep]
    is_native: bool
    packages: tuple[str, ...] = ()


class Native(NamedTuple):
    """One of our models, loaded.

    Attributes:
      description: of the model.
      variables: of the model.
      dtype: of its computation.
    """

    description: Description
    variables: dict[str, Any]
    dtype: str


def load_native(path: Path, which: str) -> Native:
    """Loads a finished run (a directory), or a model file of ours.

    Raises:
      UserError: see `corm_jax.runs.load_run` and `corm_jax.model_file.read`.
    """
    if path.is_dir():
        run = load_run(path, which)
        dtype = np.dtype(run.model.dtype).name
        return Native(run.description, jax.device_get(run.variables), dtype)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    model = model_file.read(path)
    return Native(model.description, model.variables, "float32")


def native_subject(native: Native, class_names: tuple[str, ...], mesh: Mesh) -> Subject:
    """Puts one of our models on the mesh.

    Args:
      native: from `load_native`.
      class_names: of the data.
      mesh: where to evaluate.

    Raises:
      UserError: if its classes are not those of the data.
    """
    description = native.description
    known = description.class_names
    if description.num_classes != len(class_names):
        raise UserError(
            f"the model has {description.num_classes} classes, the data {len(class_names)}"
        )
    if known is not None and known != class_names:
        number = next(i for i, name in enumerate(class_names) if known[i] != name)
        raise UserError(
            f"class {number} of the model is {known[number]!r}, of the data "
            f"{class_names[number]!r}; evaluate on data of the model's classes"
        )
    model = description.create(native.dtype)

    def make_step(protocol: str, config: ConfigDict) -> EvalStep:
        return make_eval_step(PROTOCOLS[protocol](model, config), mesh)

    return Subject(
        name=description.model,
        statistics=description.statistics,
        model=model,
        variables=jax.device_put(native.variables, replicated(mesh)),
        weights=hash_weights(flatten_dict(native.variables, sep="/")),
        make_step=make_step,
        is_native=True,
    )


def torch_subject(
    name: str, weights: Path, class_names: tuple[str, ...], *, image_size: int, device: str
) -> Subject:
    """Loads a model of another library; see `corm_jax.adapters.load`."""
    model = adapters.load(
        name, weights=weights, class_names=class_names, image_size=image_size, device=device
    )

    def make_step(protocol: str, config: ConfigDict) -> EvalStep:
        return adapters.make_eval_step(protocol, model, config)

    return Subject(
        name=name,
        statistics=model.statistics,
        model=model,
        variables={},
        weights=hash_weights(model.weights()),
        make_step=make_step,
        is_native=False,
        packages=model.packages,
    )


def hash_weights(arrays: Mapping[str, Any]) -> str:
    """Returns "sha256:" and the hash of arrays by name: of names, shapes, dtypes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
        digest.update(array.tobytes())
    return f"sha256:{digest.hexdigest()}"

"""Weights between PyTorch's names and layouts, as of torchvision and timm, and our Flax models.

A table says what the modules of a family are called in PyTorch; one walk over the variables of a
model does the rest. Arrays are numpy's: only who reads PyTorch's files needs PyTorch.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from corm_jax.errors import UserError
from corm_jax.models.resnet import ResNet

# Our path of a module, as a regular expression -> PyTorch's.
RESNET = {
    r"conv1|bn1|fc": r"\g<0>",
    r"layer(\d+)_block(\d+)/((?:conv|bn)\d)": r"layer\1.\2.\3",
    r"layer(\d+)_block(\d+)/downsample_conv": r"layer\1.\2.downsample.0",
    r"layer(\d+)_block(\d+)/downsample_bn": r"layer\1.\2.downsample.1",
}
FAMILIES: dict[type[nn.Module], dict[str, str]] = {ResNet: RESNET}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# PyTorch counts batches for an average without momentum, which none of these models use.
IGNORED = "num_batches_tracked"
IMAGE_SIZE = 64  # of the images that shapes are found with; weights of a ResNet do not depend on it
SHOWN = 4  # wrong keys of a kind in an error

Path = tuple[str, ...]


def to_flax(model: nn.Module, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts a PyTorch state dict to variables of a model.

    Args:
      model: of a family in `FAMILIES`.
      state: names of torchvision and timm (`layer1.0.conv1.weight`) -> floating-point arrays in
        PyTorch's layout.

    Returns:
      the variables that `model.apply` takes, float32 numpy arrays.

    Raises:
      UserError: if keys are missing, are too many, or have other shapes; names them all at once.
    """
    expected = {key: (path, leaf.shape) for path, key, leaf in _leaves(model, _abstract(model))}
    given = {key: state[key] for key in state if not key.endswith(IGNORED)}
    _check(
        {
            "missing": sorted(expected.keys() - given.keys()),
            "unknown": sorted(given.keys() - expected.keys()),
            "of another shape": [
                f"{key} {given[key].shape} instead of {_torch_shape(shape)}"
                for key, (_, shape) in sorted(expected.items())
                if key in given and given[key].shape != _torch_shape(shape)
            ],
        }
    )
    return unflatten_dict(
        {path: _to_flax_layout(given[key]) for key, (path, _) in expected.items()}
    )


def to_torch(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts the variables of a model to a PyTorch state dict; the inverse of `to_flax`.

    Args:
      model: of a family in `FAMILIES`.
      variables: of the model.

    Returns:
      names of torchvision and timm -> float32 numpy arrays in PyTorch's layout.
    """
    leaves = _leaves(model, variables)
    return {key: _to_torch_layout(np.asarray(leaf, np.float32)) for _, key, leaf in leaves}


def _abstract(model: nn.Module) -> Any:
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def _leaves(model: nn.Module, variables: Mapping[str, Any]) -> Iterator[tuple[Path, str, Any]]:
    """Yields (our path, PyTorch's key, leaf) of each leaf of a model's variables."""
    names = FAMILIES[type(model)]
    for path, leaf in flatten_dict(variables).items():
        _, *modules, name = path
        yield path, f"{_module('/'.join(modules), names)}.{LEAVES[name]}", leaf


def _module(path: str, names: Mapping[str, str]) -> str:
    matches = ((re.fullmatch(pattern, path), name) for pattern, name in names.items())
    return next(match.expand(name) for match, name in matches if match)


def _check(problems: Mapping[str, list[str]]) -> None:
    """Raises UserError if there are problems: names some of each kind, counts the others."""
    parts = []
    for kind, keys in problems.items():
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            parts.append(f"{kind}: {', '.join(keys[:SHOWN])}{more}")
    if parts:
        raise UserError(f"the weights do not fit the model; {'; '.join(parts)}")


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns PyTorch's shape of an array; see `_to_torch_layout`."""
    return _to_torch_layout(np.broadcast_to(np.float32(0), shape)).shape


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    """Returns a kernel [H, W, I, O] as [O, I, H, W], or [I, O] as [O, I]; a vector as it is."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _to_flax_layout(array: np.ndarray) -> np.ndarray:
    """Returns a kernel [O, I, H, W] as [H, W, I, O], or [O, I] as [I, O]; a vector as it is."""
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array, np.float32)

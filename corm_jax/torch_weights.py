"""Weights between PyTorch's names and layouts, as of timm and torchvision, and our Flax models.

A table says what the modules and parameters of a family are called in PyTorch; one walk over a
model's variables does the rest. Arrays are numpy's: only who reads PyTorch's files needs PyTorch.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from corm_jax.errors import UserError, lookup
from corm_jax.models import clip, convnext, densenet, resnet, swin, vit

# Our path of a module, or of a single parameter, as a regular expression -> PyTorch's.
Names = Mapping[str, str]
# The tables of each family by the library whose names they are.
FAMILIES: dict[type[nn.Module], dict[str, Names]] = {
    resnet.ResNet: resnet.TORCH_NAMES,
    densenet.DenseNet: densenet.TORCH_NAMES,
    vit.VisionTransformer: vit.TORCH_NAMES,
    convnext.ConvNeXt: convnext.TORCH_NAMES,
    swin.SwinTransformer: swin.TORCH_NAMES,
    clip.CLIP: clip.TORCH_NAMES,
    clip.CLIPClassifier: clip.TORCH_NAMES,
}
# What the parameters of a module are called, where the table names the module.
LEAVES = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# PyTorch counts batches for an average without momentum, which none of these models use.
IGNORED = "num_batches_tracked"

Path = tuple[str, ...]
Shape = tuple[int, ...]


def to_flax(
    model: nn.Module, state: Mapping[str, np.ndarray], *, image_size: int
) -> dict[str, Any]:
    """Converts a PyTorch state dict to variables of a model.

    Args:
      model: of a family in `FAMILIES`.
      state: names of timm (`layer1.0.conv1.weight`) or another library in the family's tables, see
        `naming` -> floating-point arrays in PyTorch's layout.
      image_size: height and width in pixels of the images that the weights are for; position
        embeddings depend on it.

    Returns:
      the variables that `model.apply` takes, float32 numpy arrays.

    Raises:
      UserError: if keys are missing, are too many, or have other shapes; names them all at once.
    """
    expected = _expected(model, state, image_size)
    given = {key: state[key] for key in state if not key.endswith(IGNORED)}
    check_fit(
        {key: shape for key, (_, shape) in expected.items()},
        {key: array.shape for key, array in given.items()},
    )
    return unflatten_dict(
        {path: _to_flax_layout(path, given[key]) for key, (path, _) in expected.items()}
    )


def to_torch(
    model: nn.Module, variables: Mapping[str, Any], *, library: str = "timm"
) -> dict[str, np.ndarray]:
    """Converts the variables of a model to a PyTorch state dict; the inverse of `to_flax`.

    Args:
      model: of a family in `FAMILIES`.
      variables: of the model.
      library: whose names to use, a key of the family's tables.

    Returns:
      PyTorch's names -> float32 numpy arrays in PyTorch's layout.

    Raises:
      UserError: if the family has no names of this library.
    """
    leaves = _leaves(model, variables, library)
    return {
        key: np.asarray(_to_torch_layout(path, np.asarray(leaf, np.float32)), order="C")
        for path, key, leaf in leaves
    }


def naming(model: nn.Module, state: Mapping[str, np.ndarray], *, image_size: int) -> str:
    """Returns the library whose names a state dict has: that of the most keys in common.

    Args:
      model: of a family in `FAMILIES`.
      state: PyTorch's names -> arrays.
      image_size: as of `to_flax`.
    """
    return _naming(model, abstract_variables(model, image_size), state)


def number_of_classes(
    create: Callable[[int], nn.Module], state: Mapping[str, np.ndarray], *, image_size: int
) -> int | None:
    """Returns the number of classes of the head in a state dict, None if there is no such head.

    Args:
      create: number of classes -> model, of a family in `FAMILIES`.
      state: PyTorch's names -> arrays.
      image_size: as of `to_flax`.
    """
    two, three = (_expected(create(classes), state, image_size) for classes in (2, 3))
    for key, (_, shape) in two.items():
        changed = [i for i, size in enumerate(shape) if size != three[key][1][i]]
        if changed and key in state and state[key].ndim == len(shape):
            return state[key].shape[changed[0]]
    return None


def _expected(
    model: nn.Module, state: Mapping[str, np.ndarray], image_size: int
) -> dict[str, tuple[Path, Shape]]:
    """Returns PyTorch's key -> (our path, PyTorch's shape), in the names of the state dict."""
    shapes = abstract_variables(model, image_size)
    leaves = _leaves(model, shapes, _naming(model, shapes, state))
    return {key: (path, _torch_shape(path, leaf.shape)) for path, key, leaf in leaves}


def _naming(model: nn.Module, shapes: Any, state: Mapping[str, np.ndarray]) -> str:
    paths, tables = flatten_dict(shapes), FAMILIES[type(model)]
    shared = {
        library: sum(_key(path, names) in state for path in paths)
        for library, names in tables.items()
    }
    return max(shared, key=lambda library: shared[library])


def abstract_variables(model: nn.Module, image_size: int) -> Any:
    """Returns the shapes and dtypes of a model's variables, for square images of a size."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def _leaves(
    model: nn.Module, variables: Mapping[str, Any], library: str
) -> Iterator[tuple[Path, str, Any]]:
    """Yields (our path, PyTorch's key, leaf) of each leaf of a model's variables."""
    names = lookup(FAMILIES[type(model)], library, "library")
    for path, leaf in flatten_dict(variables).items():
        key = _key(path, names)
        if key is None:
            raise UserError(f"{library} has no such model: no name for {'/'.join(path[1:])}")
        yield path, key, leaf


def _key(path: Path, names: Names) -> str | None:
    """Returns PyTorch's key of a parameter: by its own path, else by its module's."""
    _, *modules, leaf = path  # the first is the collection
    own = _translate("/".join([*modules, leaf]), names)
    module = _translate("/".join(modules), names)
    return own or (module and f"{module}.{LEAVES[leaf]}")


def _translate(path: str, names: Names) -> str | None:
    matches = ((re.fullmatch(pattern, path), name) for pattern, name in names.items())
    return next((match.expand(name) for match, name in matches if match), None)


def check_fit(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> None:
    """Checks that arrays are those of a model.

    Args:
      expected: shapes by key.
      given: shapes by key.

    Raises:
      UserError: if keys are missing, are too many, or have other shapes; names every one, in one
        line.
    """
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unknown": sorted(given.keys() - expected.keys()),
        "of another shape": [
            f"{key} {given[key]} instead of {shape}"
            for key, shape in sorted(expected.items())
            if key in given and given[key] != shape
        ],
    }
    parts = [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys]
    if parts:
        raise UserError(f"the weights do not fit the model; {'; '.join(parts)}")


def _torch_shape(path: Path, shape: Shape) -> Shape:
    """Returns PyTorch's shape of a parameter; see `_to_torch_layout`."""
    return _to_torch_layout(path, np.broadcast_to(np.float32(0), shape)).shape


def _to_torch_layout(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns a kernel [..., I, O] as [O, I, ...], such as [H, W, I, O]; others as they are."""
    if path[-1] != "kernel":
        return array
    return array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))


def _to_flax_layout(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns a kernel [O, I, ...] as [..., I, O]; others as they are."""
    if path[-1] == "kernel":
        array = array.transpose(*range(2, array.ndim), 1, 0)
    return np.asarray(array, np.float32, order="C")  # not ascontiguousarray: scalars stay such

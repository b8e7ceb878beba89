"""Files of PyTorch state dicts: names -> arrays, as timm, torchvision, open_clip and others save.

Formats: .safetensors and .npz, which need no PyTorch; any other suffix (.pth, .pt, .bin) is a file
of `torch.save`: a state dict, alone or as {"model": ...} or {"state_dict": ...}. A checkpoint of
MadryLab's `robustness` is one too: its keys are `module.model.*` (torchvision's names),
`module.normalizer.new_mean` and `.new_std` (of shape [3, 1, 1]), and copies of both below
`module.attacker`.

Nothing in a file is executed: PyTorch's restricted reader takes tensors and plain containers only.
"""

import io
import json
import re
import shlex
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from corm_jax.errors import UserError, lookup
from corm_jax.models.normalizer import Statistics

CONTAINERS = ("model", "state_dict")
NORMALIZER = ("normalizer.new_mean", "normalizer.new_std")
# What the readers were seen to raise for files cut off or changed at random.
DAMAGE = (
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    safetensors.SafetensorError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# Of safetensors; those without sub-byte and 8-bit floats, which no weights of these models have.
DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}
MAX_HEADER = 100_000_000  # bytes, of the format
HALF = (np.float16, ml_dtypes.bfloat16)

State = dict[str, np.ndarray]


class Weights(NamedTuple):
    """What a file holds.

    Attributes:
      state: names of the model's own -> arrays; half precision is widened to float32.
      statistics: of the file's normaliser, None without one.
    """

    state: State
    statistics: Statistics | None


def read(path: Path) -> Weights:
    """Reads a state dict.

    Prefixes of wrappers (`module.`, `model.`) and an attacker's copy are left out.

    Args:
      path: of a format of the module's docstring.

    Raises:
      UserError: if the file cannot be read without running code that is in it, is damaged, or
        holds no state dict; names the file and the way out.
    """
    reader = READERS.get(path.suffix, _read_torch)
    try:
        state = _own_names(reader(path))
        return Weights(state, _pop_statistics(state))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_safetensors(path: Path) -> State:
    """Reads a .safetensors file as it is, but half precision, which is widened to float32.

    Raises:
      UserError: if it is none, or damaged; does not name the file.
    """
    with _opened(path) as file:
        try:
            entries = safetensors.deserialize(file.read())
            return {name: _array(name, entry) for name, entry in entries}
        except DAMAGE as error:
            raise UserError(f"is damaged, or no safetensors file ({error})") from error


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Reads the metadata in the header of a .safetensors file.

    Raises:
      UserError: if it is none, or damaged; does not name the file.
    """
    with _opened(path) as file:
        try:
            size = min(int.from_bytes(file.read(8), "little"), MAX_HEADER)
            return json.loads(file.read(size)).get("__metadata__", {})
        except DAMAGE as error:
            raise UserError(f"is damaged, or no safetensors file ({error})") from error


def _array(name: str, entry: Mapping[str, Any]) -> np.ndarray:
    dtype = lookup(DTYPES, entry["dtype"], f"dtype of {name!r}:")
    return _widened(np.frombuffer(entry["data"], dtype).reshape(entry["shape"]))


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype in HALF else array


def _read_npz(path: Path) -> State:
    with _opened(path) as file:
        try:
            with np.load(file, allow_pickle=False) as content:
                state = {name: _widened(content[name]) for name in content.files}
        except (*DAMAGE, AttributeError) as error:  # AttributeError: a single array, of .npy
            raise UserError("is damaged, or no .npz file of plain arrays") from error
    for name, array in state.items():
        if array.dtype.kind not in "biuf":
            raise UserError(f"{name!r} is of dtype {array.dtype}; save float32 instead")
    return state


def _read_torch(path: Path) -> State:
    torch = _import_torch("reading it")
    with _opened(path) as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except DAMAGE as error:
            raise UserError(_refusal(path, str(error))) from error
    tensors = _state_dict(content)
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{name!r} is a {type(value).__name__}, not a tensor")
        if value.layout is not torch.strided or value.is_quantized:
            raise UserError(f"{name!r} is sparse or quantized; save dense float32 instead")
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in tensors.items()
    }


def _import_torch(what: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{what} needs PyTorch: pip install 'corm_jax[torch]'") from error
    return torch


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}") from error


def _refusal(path: Path, message: str) -> str:
    """Returns what to tell of a file that PyTorch's restricted reader does not take."""
    refused = re.search(r"GLOBAL (\S+)", message)
    if refused is None:
        return "is damaged, or no PyTorch checkpoint; download or copy it again"
    target = path.with_name(f"{path.stem}_weights.pt")
    source, saved = json.dumps(str(path)), json.dumps(str(target))
    snippet = (
        f'import dill, torch; torch.save(torch.load({source}, "cpu", pickle_module=dill, '
        f'weights_only=False)["model"], {saved})'
    )
    return (
        f"holds the Python object {refused[1]} beside weights, which is not read, since it could "
        "run any code; if you trust the file, save its weights alone, for example with "
        f"python -c {shlex.quote(snippet)} (pip install torch dill), and load {target}"
    )


def _state_dict(content: object) -> Mapping[str, Any]:
    """Returns the state dict that a checkpoint holds."""
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise UserError(
            f"holds a {type(content).__name__}, not a state dict, alone or as 'model' or "
            "'state_dict'"
        )
    return content


def _own_names(state: Mapping[str, np.ndarray]) -> State:
    """Returns the model's own names and the normaliser's, without wrappers and their copies."""
    names = {key: re.sub(r"^(module\.)?(model\.)?", "", key) for key in state}
    return {name: state[key] for key, name in names.items() if not name.startswith("attacker.")}


def _pop_statistics(state: State) -> Statistics | None:
    """Takes the normaliser out of `state`."""
    found = [state.pop(key) for key in NORMALIZER if key in state]
    if not found:
        return None
    if [value.size for value in found] != [3, 3] or not np.all(found[1] > 0):
        raise UserError(f"{' and '.join(NORMALIZER)} must have three values each, std above 0")
    mean, std = (tuple(map(float, value.ravel())) for value in found)
    return Statistics(mean, std)


def encode(state: Mapping[str, np.ndarray], suffix: str) -> bytes:
    """Returns the content of a file.

    Args:
      state: names -> contiguous arrays.
      suffix: a key of `ENCODERS`.

    Raises:
      UserError: for an unknown suffix, or .pth without PyTorch.
    """
    return lookup(ENCODERS, suffix, "format of a file")(state)


def _encode_safetensors(state: Mapping[str, np.ndarray]) -> bytes:
    # The metadata says to other readers whose layout the arrays have.
    return safetensors.numpy.save(dict(state), metadata={"format": "pt"})


def _encode_npz(state: Mapping[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **state)
    return file.getvalue()


def _encode_torch(state: Mapping[str, np.ndarray]) -> bytes:
    torch, file = _import_torch("writing a .pth file"), io.BytesIO()
    torch.save({name: torch.tensor(array) for name, array in state.items()}, file)
    return file.getvalue()


READERS: dict[str, Callable[[Path], State]] = {
    ".safetensors": read_safetensors,
    ".npz": _read_npz,
}
ENCODERS: dict[str, Callable[[Mapping[str, np.ndarray]], bytes]] = {
    ".safetensors": _encode_safetensors,
    ".npz": _encode_npz,
    ".pth": _encode_torch,
}

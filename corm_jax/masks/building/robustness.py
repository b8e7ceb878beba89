"""Encoders from checkpoints of MadryLab's `robustness`, and from plain PyTorch state dicts.

A checkpoint is a file of `torch.save`: {"model": state dict, "epoch": ..., ...}. Its keys are
`module.model.*` (torchvision's names), `module.normalizer.new_mean` and `.new_std` (of shape
[3, 1, 1]), and copies of both below `module.attacker`.
Read are also {"state_dict": state dict}, a bare state dict, and .safetensors files of one.

Nothing in a file is executed: PyTorch's restricted reader takes tensors and plain containers only.
"""

import json
import re
import shlex
import struct
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import flax.linen as nn
import numpy as np

from corm_jax.errors import UserError
from corm_jax.models import MODELS, create_model
from corm_jax.models.normalizer import Statistics
from corm_jax.models.resnet import BasicBlock, Bottleneck
from corm_jax.torch_weights import to_flax

ARCHITECTURES = ("resnet18", "resnet50")
IMAGE_SIZE = 224  # in pixels; weights of a ResNet do not depend on it
CONTAINERS = ("model", "state_dict")
NORMALIZER = ("normalizer.new_mean", "normalizer.new_std")
# What PyTorch's reader was seen to raise for files cut off or changed at random.
DAMAGE = (
    UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AssertionError,
    struct.error,
)
State = dict[str, np.ndarray]


def load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a residual network.

    Args:
      path: the checkpoint; see the module's docstring.

    Returns:
      (model, variables as float32 numpy arrays). The architecture, resnet18 or resnet50, and the
      number of classes are the weights'. The model normalises as the checkpoint says, or with
      ImageNet's statistics where it does not say.

    Raises:
      UserError: if the file cannot be read without running code that is in it, is damaged, or
        holds another model; names the file and the way out.
    """
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    try:
        state = _own_names(read(path))
        statistics = _statistics(state)
        model = create_model(_architecture(state), num_classes=_classes(state), dtype="float32")
        return model.clone(**statistics), to_flax(model, state, image_size=IMAGE_SIZE)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_torch(path: Path) -> State:
    try:
        import torch
    except ImportError as error:
        raise UserError("reading it needs PyTorch: pip install 'corm_jax[torch]'") from error
    with _opened(path) as file:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except DAMAGE as error:
            raise UserError(_refusal(path, str(error))) from error
    tensors = _state_dict(content)
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{key!r} is a {type(value).__name__}, not a tensor")
    return {key: value.to(torch.float32).numpy() for key, value in tensors.items()}


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


def _read_safetensors(path: Path) -> State:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load as parse
    except ImportError as error:
        raise UserError("reading it needs safetensors: pip install 'corm_jax[torch]'") from error
    with _opened(path) as file:
        try:
            return parse(file.read())
        except SafetensorError as error:
            raise UserError(f"is damaged, or no safetensors file ({error})") from error


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
    """Returns torchvision's names and the normaliser's, without wrappers and their copies."""
    names = {key: re.sub(r"^(module\.)?(model\.)?", "", key) for key in state}
    return {name: state[key] for key, name in names.items() if not name.startswith("attacker.")}


def _statistics(state: State) -> dict[str, Statistics]:
    """Takes the normaliser out of `state`; returns the model's attribute, {} without one."""
    found = [state.pop(key) for key in NORMALIZER if key in state]
    if not found:
        return {}
    if [value.size for value in found] != [3, 3] or not np.all(found[1] > 0):
        raise UserError(f"{' and '.join(NORMALIZER)} must have three values each, std above 0")
    mean, std = (tuple(map(float, value.ravel())) for value in found)
    return {"statistics": Statistics(mean, std)}


def _architecture(state: State) -> str:
    """Returns which of `ARCHITECTURES` has the blocks that the weights are of."""
    blocks = {match.groups() for key in state if (match := re.match(r"layer(\d+)\.(\d+)\.", key))}
    stages = tuple(sum(stage == str(n) for stage, _ in blocks) for n in range(1, 5))
    block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
    for name in ARCHITECTURES:
        known = MODELS[name].keywords
        if known["stage_sizes"] == stages and known["block"] is block:
            return name
    found = f"{block.__name__} blocks {stages}" if blocks else "none"
    raise UserError(
        f"its weights are not those of {' or '.join(ARCHITECTURES)} with torchvision's names "
        f"(residual blocks: {found})"
    )


def _classes(state: State) -> int:
    if "fc.weight" not in state or state["fc.weight"].ndim != 2:
        raise UserError("has no classifier (fc.weight [classes, channels])")
    return len(state["fc.weight"])

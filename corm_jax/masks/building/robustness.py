"""Encoders from checkpoints of MadryLab's `robustness`, and from plain PyTorch state dicts."""

import re
from pathlib import Path
from typing import Any

import flax.linen as nn

from corm_jax.errors import UserError
from corm_jax.models import MODELS, create_model
from corm_jax.models.resnet import BasicBlock, Bottleneck
from corm_jax.state_dicts import State, read
from corm_jax.torch_weights import to_flax

ARCHITECTURES = ("resnet18", "resnet50")
IMAGE_SIZE = 224  # in pixels; weights of a ResNet do not depend on it


def load(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a residual network.

    Args:
      path: the checkpoint; see `corm_jax.state_dicts`.

    Returns:
      (model, variables as float32 numpy arrays). The architecture, resnet18 or resnet50, and the
      number of classes are the weights'. The model normalises as the checkpoint says, or with
      ImageNet's statistics where it does not say.

    Raises:
      UserError: if the file cannot be read without running code that is in it, is damaged, or
        holds another model; names the file and the way out.
    """
    state, statistics = read(path)
    try:
        model = create_model(_architecture(state), num_classes=_classes(state), dtype="float32")
        if statistics:
            model = model.clone(statistics=statistics)
        return model, to_flax(model, state, image_size=IMAGE_SIZE)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


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

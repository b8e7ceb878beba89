"""PyTorch's own models with random weights, to compare ours with; skips where it is absent."""

from types import ModuleType
from typing import Any

import pytest


def import_torchvision() -> ModuleType:
    """Imports torchvision, even where it was built for another PyTorch."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.ops.torchvision, "nms"):
        torch.library.define("torchvision::nms", "(Tensor a, Tensor b, float c) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor a, Tensor b, float c) -> Tensor")
    return pytest.importorskip("torchvision")


def randomize(module: Any, seed: int = 0) -> Any:
    """Gives a module random weights and running averages, of a size that keeps activations small.

    Every running variance and scale is another, so that what is mixed up shows.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith("num_batches_tracked"):
                value.fill_(7)
            elif key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim == 1:
                value.normal_(0, 0.1, generator=generator)
            else:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    return module.eval()

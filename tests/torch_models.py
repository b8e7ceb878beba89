"""PyTorch's own models with random weights, to compare ours with; skips where it is absent."""

from types import ModuleType
from typing import Any

import pytest


def import_torchvision() -> ModuleType:
    """Imports torchvision, even where it was built for another PyTorch."""
    import_parity().define_operators()
    return pytest.importorskip("torchvision")


def import_timm() -> ModuleType:
    """Imports timm, which imports torchvision."""
    import_torchvision()
    return pytest.importorskip("timm")


def import_parity() -> ModuleType:
    """Imports benchmarks/parity.py, which compares our models with PyTorch's."""
    pytest.importorskip("torch")
    import parity

    return parity


def randomize(module: Any, seed: int = 0) -> Any:
    """Gives a module random weights and running averages; see benchmarks/parity.py."""
    return import_parity().randomize(module, seed)

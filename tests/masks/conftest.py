"""Small mask records of each encoding."""

from pathlib import Path

import numpy as np
import pytest
from png_files import WHITE, png_file

from corm_jax.masks.writer import MaskWriter


@pytest.fixture
def grid_records(tmp_path: Path) -> Path:
    path = tmp_path / "grid"
    with MaskWriter(path, encoding="grid", grid=(2, 3)) as writer:
        writer.add("both", core=np.full((2, 3), 7, np.uint8), spurious=np.full((2, 3), 9, np.uint8))
        writer.add("none")
    return path


@pytest.fixture
def png_records(tmp_path: Path) -> Path:
    path = tmp_path / "png"
    with MaskWriter(path, encoding="png") as writer:
        writer.add("core", core=png_file(WHITE))
        writer.add("spurious", spurious=png_file(WHITE, "1"))
    return path


@pytest.fixture
def box_records(tmp_path: Path) -> Path:
    path = tmp_path / "box"
    with MaskWriter(path, encoding="grid", grid=(1, 1), frame={"type": "box"}) as writer:
        writer.add("a", core=np.ones((1, 1), np.uint8), box=(0, 0.25, 0.5, 1))
    return path

"""A running server of pairs, and the workdir of a small real build."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from annotate_fixtures import Served
from command import small_config

from corm_jax.masks.__main__ import main


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    running = Served(tmp_path)
    yield running
    running.close()


@pytest.fixture(scope="session")
def built(shapes_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a build that stopped because nobody has annotated its features."""
    from corm_jax.train import train

    encoder = tmp_path_factory.mktemp("encoder") / "run"
    changes = {"model__name": "resnet8_nano", "train__steps": 12}
    train(small_config("configs/resnet_erm.py", shapes_data_dir, **changes), encoder)
    workdir = tmp_path_factory.mktemp("built")
    options = {
        "encoder.kind": "run",
        "encoder.path": encoder,
        "encoder.image_size": 16,
        "data.data_dir": shapes_data_dir,
        "data.tfds_name": "spurious_shapes/tiny",
        "scan.batch_size": 8,
        "features.per_class": 2,
    }
    flags = [f"--config.{key}={value}" for key, value in options.items()]
    assert main(["build", f"--workdir={workdir}", *flags]) == 1  # needs annotations
    assert (workdir / "features.json").is_file()
    return workdir

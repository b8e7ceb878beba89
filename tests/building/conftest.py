"""An encoder of random weights, and stores made of given numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import small_config
from encoders import random_encoder

from corm_jax.masks.building import store
from corm_jax.masks.building.encoder import Encoder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return random_encoder("resnet8_nano", 32, ("class0", "class1"))


@pytest.fixture(scope="session")
def encoder_run(shapes_data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a short run of the main job."""
    from corm_jax.train import train

    workdir = tmp_path_factory.mktemp("encoder") / "run"
    changes = {"model__name": "resnet8_nano", "train__steps": 12}
    train(small_config("configs/resnet_erm.py", shapes_data_dir, **changes), workdir)
    return workdir


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., store.FeatureStore]:
    """Returns a function that writes a store of two images a shard, every map kept."""

    def make(
        activations: np.ndarray,
        label: list[int],
        predicted: list[int] | None = None,
        maps: np.ndarray | None = None,
        valid: list[bool] | None = None,
        name: str = "train",
    ) -> store.FeatureStore:
        count, channels = activations.shape
        maps = np.zeros((count, channels, 1, 1), np.uint8) if maps is None else maps
        names = np.array([f"{name}_{index}.JPEG".encode() for index in range(count)])
        directory = tmp_path / "store" / name
        header = store.describe(
            names,
            encoder="some",
            shard_images=2,
            channels=channels,
            grid=maps.shape[2:],
            candidates=channels,
        )
        store.create_store(directory, header, names)
        arrays = {
            "label": np.array(label, np.int32),
            "predicted": np.array(label if predicted is None else predicted, np.int32),
            "valid": np.ones(count, bool) if valid is None else np.array(valid),
            "activations": activations.astype(np.float16),
            "candidates": np.tile(np.arange(channels, dtype=np.uint16), (count, 1)),
            "maps": maps,
        }
        for number in range(store.shards(header)):
            part = slice(2 * number, 2 * number + 2)
            shard = {key: array[part] for key, array in arrays.items()}
            store.write_arrays(store.shard_path(directory, number), shard)
        return store.FeatureStore(directory)

    return make

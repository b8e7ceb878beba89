import dataclasses
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command import small_config
from encoders import random_encoder

from corm_jax.errors import UserError
from corm_jax.masks.building.config import build_config
from corm_jax.masks.building.encoder import Encoder, activation_maps, open_encoder
from corm_jax.masks.building.scan import Part, loaded
from corm_jax.masks.building.splits import open_splits
from corm_jax.sharding import create_mesh

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.uniform(jax.random.key(2), (2, 32, 32, 3))


@pytest.mark.parametrize("name", ["resnet8_nano", "resnet10_nano", "vit_nano_patch8_48"])
def test_logits_are_the_activations_times_the_head(name: str, images: jax.Array) -> None:
    encoder = random_encoder(name, 32, NAMES)
    logits, activations, maps = encoder.encode(encoder.variables, images)
    head = encoder.variables["params"]["head" if name.startswith("vit") else "fc"]
    expected = np.asarray(activations) @ encoder.head_weight + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert encoder.head_weight.shape == (activations.shape[1], 3)
    assert maps.shape[3] == activations.shape[1]
    assert maps.shape[1] == maps.shape[2]
    assert float(maps.min()) >= 0


def test_activations_of_a_resnet_are_the_means_of_its_maps(images: jax.Array) -> None:
    encoder = random_encoder("resnet8_nano", 32, NAMES)
    _, activations, maps = encoder.encode(encoder.variables, images)
    assert maps.shape == (2, 4, 4, 64)
    np.testing.assert_allclose(activations, np.asarray(maps).mean(axis=(1, 2)), rtol=1e-5)


def test_map_of_a_vision_transformer_is_where_its_patches_are(images: jax.Array) -> None:
    encoder = random_encoder("vit_tiny_patch16_224", 32, NAMES)  # with a class token
    _, intermediates = encoder.model.apply(encoder.variables, images, train=False)
    _, _, maps = encoder.encode(encoder.variables, images)
    assert maps.shape == (2, 2, 2, 192)
    tokens = np.asarray(intermediates["tokens"])  # class token, then rows of patches
    assert tokens.shape[1] == 5
    for place, token in [((0, 0), 1), ((0, 1), 2), ((1, 0), 3), ((1, 1), 4)]:
        np.testing.assert_array_equal(maps[:, *place], np.maximum(tokens[:, token], 0))


def test_activation_maps_by_hand() -> None:
    maps = np.zeros((1, 2, 2, 3), np.float32)
    maps[0, :, :, 0] = [[1, 2], [0, 4]]
    maps[0, :, :, 1] = [[0, 0], [0, 0]]
    maps[0, :, :, 2] = [[3, 3], [3, 3]]
    found = np.asarray(activation_maps(jnp.asarray(maps)))
    np.testing.assert_array_equal(found[0, :, :, 0], [[0.25, 0.5], [0, 1]])
    np.testing.assert_array_equal(found[0, :, :, 1], np.zeros((2, 2)))
    np.testing.assert_array_equal(found[0, :, :, 2], np.ones((2, 2)))


def test_fingerprint_tells_encoders_apart(encoder: Encoder) -> None:
    other_size = dataclasses.replace(encoder, image_size=48)
    params = jax.tree.map(lambda leaf: leaf, encoder.variables)
    params["params"]["fc"]["bias"] = params["params"]["fc"]["bias"].at[0].add(1e-6)
    other_weights = dataclasses.replace(encoder, variables=params)
    prints = {e.fingerprint() for e in (encoder, other_size, other_weights)}
    assert len(prints) == 3


def open_run(path: Path, names: tuple[str, ...], kind: str = "run", size: int = 16) -> Encoder:
    config = build_config("folder")
    config.encoder.kind, config.encoder.path, config.encoder.image_size = kind, str(path), size
    return open_encoder(config, names, create_mesh(-1, 1))


def test_encoder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} is not the workdir of a finished")):
        open_run(tmp_path, NAMES)
    with pytest.raises(UserError, match=r"unknown config.encoder.kind 'runs' \(did you mean 'run'"):
        open_run(tmp_path, NAMES, kind="runs")
    with pytest.raises(UserError, match=r"name the encoder: --config.encoder.path=PATH"):
        open_run("", NAMES)


@pytest.mark.slow
def test_run_of_the_main_job_predicts_what_it_predicted(
    tmp_path: Path, shapes_data_dir: Path
) -> None:
    from corm_jax.data.drawing import SHAPES
    from corm_jax.train import train

    changes = {"model__name": "resnet8_nano", "train__steps": 12, "train__ema_decay": 0.5}
    config = small_config("configs/resnet_erm.py", shapes_data_dir, **changes)
    workdir = tmp_path / "run"
    results = train(config, workdir)

    build = build_config("demo")
    build.data.data_dir, build.data.tfds_name = str(shapes_data_dir), "spurious_shapes/tiny"
    build.encoder.path, build.encoder.image_size, build.scan.batch_size = str(workdir), 16, 48
    encoder = open_encoder(build, SHAPES, create_mesh(-1, 1))
    images = open_splits(build).images["validation"]
    (batch,) = loaded(encoder, images, build, [Part(0, np.arange(48))])
    logits, _, _ = encoder.encode(encoder.variables, batch["image"].astype(np.float32) / 255)
    accuracy = float((np.argmax(logits, axis=1) == batch["label"]).mean())
    assert accuracy == pytest.approx(results["metrics"]["clean_plain"])

    with pytest.raises(UserError, match=r"the encoder has 6 classes, the data 3"):
        open_encoder(build, NAMES, create_mesh(-1, 1))
    shutil.rmtree(workdir / "checkpoints" / "12")
    with pytest.raises(UserError, match=r"checkpoints holds no checkpoint of step 12"):
        open_encoder(build, SHAPES, create_mesh(-1, 1))

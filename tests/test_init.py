"""Runs that start from trained variables, and the last-layer methods."""

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command import small_config
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from stepping import one_device

from corm_jax import model_file
from corm_jax.config import base_config, check_config
from corm_jax.description import Description
from corm_jax.errors import UserError
from corm_jax.init import Source, fit, load
from corm_jax.models import create_model
from corm_jax.models.normalizer import Statistics
from corm_jax.models.positions import resample_positions
from corm_jax.recipes import METHODS
from corm_jax.runs import load_run
from corm_jax.state import abstract_state, create_state
from corm_jax.state_dicts import encode
from corm_jax.torch_weights import abstract_variables, to_torch
from corm_jax.train import train

VIT, RESNET = "vit_nano_patch8_48", "resnet8_nano"
STATISTICS = Statistics((0.25, 0.5, 0.75), (0.125, 0.25, 0.5))
NAMES = ("cat", "dog", "owl")


def describe(name: str, names: tuple[str, ...] | None, classes: int, size: int = 16) -> Description:
    return Description(
        model=name,
        num_classes=classes,
        class_names=names,
        statistics=STATISTICS,
        image_size=size,
        center_crop_share=1.0,
        interpolation="bilinear",
    )


def make_source(
    name: str, names: tuple[str, ...] | None = NAMES, classes: int = 3, size: int = 16
) -> Source:
    """Returns random variables of a model."""
    rng = np.random.default_rng(0)
    model = create_model(name, num_classes=classes, dtype="float32")
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32),
        abstract_variables(model, size),
    )
    return Source(describe(name, names, classes, size), variables)


def start(source: Source, name: str, size: int = 16, **changes: Any) -> tuple[dict, dict]:
    """Returns (what the source was fitted to, the variables that training starts from), by path."""
    config = base_config("erm")
    config.data.image_size = size
    config.update({"init": "SOURCE", "model": {"name": name}, **changes})
    pool = config.model.global_pool
    model = create_model(name, num_classes=len(NAMES), dtype="float32", global_pool=pool)
    abstract = abstract_state(config, model, one_device())
    trained = fit(source, config, model, abstract, NAMES)
    state = create_state(config, model, abstract, trained)
    return flatten_dict(trained, sep="/"), flatten_dict(jax.device_get(state.variables()), sep="/")


@pytest.mark.parametrize("name", [VIT, RESNET])
@pytest.mark.parametrize("names", [NAMES, None])
def test_everything_is_taken_where_the_classes_are_the_same_or_unnamed(name, names):
    source = make_source(name, names)
    _, found = start(source, name)
    expected = flatten_dict(source.variables, sep="/")
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


@pytest.mark.parametrize(
    ("name", "head", "source", "changes", "reason"),
    [
        (VIT, "head", {"names": None, "classes": 5}, {}, "5 classes in SOURCE, 3 here"),
        (RESNET, "fc", {"names": None, "classes": 2}, {}, "2 classes in SOURCE, 3 here"),
        (VIT, "head", {"names": ("cat", "owl", "dog")}, {}, "class 1 is 'owl' in SOURCE, 'dog'"),
        (VIT, "head", {}, {"fresh_head": True}, "config.fresh_head"),
    ],
)
def test_head_of_other_classes_starts_afresh(name, head, source, changes, reason, caplog):
    caplog.set_level(logging.INFO)
    source = make_source(name, **source)
    trained, found = start(source, name, **changes)
    assert f"the classifier starts afresh: {reason}" in caplog.text
    given = flatten_dict(source.variables, sep="/")
    assert given.keys() - trained.keys() == {f"params/{head}/kernel", f"params/{head}/bias"}
    for key, array in trained.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    np.testing.assert_array_equal(found[f"params/{head}/bias"], np.zeros(3))


def test_all_that_does_not_fit_is_named_at_once():
    source = make_source(RESNET)
    flat = flatten_dict(source.variables, sep="/")
    del flat["params/bn1/scale"], flat["batch_stats/bn1/var"]
    flat["params/extra"] = np.zeros(2, np.float32)
    flat["params/conv1/kernel"] = np.zeros((5, 5, 3, 16), np.float32)
    with pytest.raises(UserError) as info:
        start(source._replace(variables=unflatten_dict(flat, sep="/")), RESNET)
    message = str(info.value)
    assert message.startswith("config.init=SOURCE: ")
    for part in (
        "2 missing: batch_stats/bn1/var, params/bn1/scale",
        "1 unknown: params/extra",
        "1 of another shape: params/conv1/kernel (5, 5, 3, 16) instead of (3, 3, 3, 16)",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (14, 9), (3, 3)])
@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_positions_are_interpolated_as_in_timm(old, new, tokens):
    torch = pytest.importorskip("torch")
    torch_models = pytest.importorskip("torch_models")
    torch_models.import_torchvision()
    layers = pytest.importorskip("timm.layers")
    table = np.random.default_rng(0).normal(size=(1, tokens + old * old, 5)).astype(np.float32)
    expected = layers.resample_abs_pos_embed(
        torch.from_numpy(table), [new, new], num_prefix_tokens=tokens
    )
    found = np.asarray(resample_positions(table, old, new))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[:, :tokens], table[:, :tokens])


def test_positions_follow_the_size_of_the_images():
    source = make_source(VIT, size=16)
    table = np.array([[[1.0], [2.0], [3.0], [4.0]]], np.float32).repeat(96, axis=2)
    source.variables["params"]["pos_embed"] = table  # of 2 x 2 patches
    _, found = start(source, VIT, size=48)
    grid = found["params/pos_embed"].reshape(6, 6, 96)
    np.testing.assert_allclose(grid.mean(axis=(0, 1)), 2.5, rtol=1e-5)
    np.testing.assert_allclose(grid + grid[::-1, ::-1], 5.0, rtol=1e-5)  # point symmetric
    assert (np.diff(grid[:, :, 0].mean(axis=1)) > 0).all()


def test_the_class_token_is_left_out_where_the_head_sees_a_mean(caplog):
    caplog.set_level(logging.INFO)
    name = "vit_tiny_patch16_224"
    source = make_source(name, size=32)
    given = flatten_dict(source.variables, sep="/")
    trained, _ = start(source, name, size=32, model={"name": name, "global_pool": "avg"})
    assert "the class token is left out" in caplog.text
    assert given.keys() - trained.keys() == {"params/cls_token"}
    positions = given["params/pos_embed"]
    assert positions.shape == (1, 5, 192)
    np.testing.assert_array_equal(trained["params/pos_embed"], positions[:, 1:])
    trained, _ = start(source, name, size=48, model={"name": name, "global_pool": "avg"})
    np.testing.assert_array_equal(
        trained["params/pos_embed"], resample_positions(positions[:, 1:], 2, 3)
    )


@pytest.fixture(scope="module")
def erm(tmp_path_factory: pytest.TempPathFactory, shapes_data_dir: Path) -> Path:
    """The workdir of a finished run that averages its weights."""
    workdir = tmp_path_factory.mktemp("runs") / "erm"
    config = small_config("configs/vit_erm.py", shapes_data_dir, **SMALLER, train__ema_decay=0.5)
    train(config, workdir)
    return workdir


SMALLER = {"train__steps": 2, "eval__trials": 1, "optimizer__warmup_steps": 0}


def test_a_run_starts_where_another_ended(erm: Path, shapes_data_dir: Path, tmp_path: Path):
    changes = {"init": str(erm), "optimizer__learning_rate": 1e-30}
    config = small_config("configs/vit_erm.py", shapes_data_dir, **SMALLER, **changes)
    results = train(config, tmp_path / "run")
    assert results["metrics"] == json.loads((erm / "results.json").read_text())["metrics"]
    before, after = load_run(erm), load_run(tmp_path / "run")
    # The rate moves a parameter that is exactly 0.
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-29)
    jax.tree.map(close, before.variables, after.variables)


@pytest.mark.parametrize("method", METHODS)
def test_last_layer_methods_train_the_head_of_a_run(
    method: str, erm: Path, shapes_data_dir: Path, tmp_path: Path
):
    name = f"configs/finetune.py:demo,{method}"
    changes = {"init": str(erm), "optimizer__learning_rate": 1e-6}
    config = small_config(name, shapes_data_dir, **SMALLER, **changes)
    results = train(config, tmp_path / "run")
    assert results["steps"] == 2
    before, after = (
        flatten_dict(load_run(workdir).variables, sep="/") for workdir in (erm, tmp_path / "run")
    )
    differing = {key for key in before if (before[key] != after[key]).any()}
    assert differing == {"params/head/kernel", "params/head/bias"}
    # A ViT's fresh head is zero; a step of AdamW is about the learning rate.
    start = 0 if method == "dfr" else before["params/head/kernel"]
    moved = abs(np.asarray(after["params/head/kernel"]) - start)
    assert 0 < moved.max() < 3e-6
    assert abs(np.asarray(before["params/head/kernel"])).max() > 1e-4


def write_file(path: Path, source: Source) -> None:
    model_file.write(path, model_file.Model(*source, {"file": "x", "sha256": "y"}))


def test_a_files_normaliser_comes_along_and_a_resumed_run_reads_no_file(
    shapes_data_dir: Path, tmp_path: Path
):
    path, workdir = tmp_path / "weights.safetensors", tmp_path / "run"
    write_file(path, make_source(RESNET, names=None, classes=6))
    changes = {"init": str(path), "model__name": RESNET, "optimizer__trainable": "head"}
    config = small_config("configs/resnet_erm.py", shapes_data_dir, **SMALLER, **changes)
    results = train(config, workdir)
    assert load_run(workdir).description.statistics == STATISTICS
    path.unlink()
    (workdir / "results.json").unlink()
    assert train(config, workdir)["metrics"] == results["metrics"]
    assert load_run(workdir).description.statistics == STATISTICS


def init_config(init: Path, name: str = VIT) -> ConfigDict:
    config = base_config("erm")
    config.update({"init": str(init), "model": {"name": name}})
    return config


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_state_dicts_of_pytorch_are_taken_as_the_configs_model(library: str, tmp_path: Path):
    source = make_source("resnet18", names=None, classes=4)
    model = create_model("resnet18", num_classes=4, dtype="float32")
    path = tmp_path / "weights.npz"
    path.write_bytes(encode(to_torch(model, source.variables, library=library), ".npz"))
    found = load(init_config(path, "resnet18"), tmp_path / "run")
    assert (found.description.num_classes, found.description.class_names) == (4, None)
    jax.tree.map(np.testing.assert_array_equal, found.variables, source.variables)


def unfinished(directory: Path, erm: Path) -> Path:
    shutil.copytree(erm, directory / "unfinished")
    (directory / "unfinished" / "results.json").unlink()
    return directory / "unfinished"


def without_checkpoints(directory: Path, erm: Path) -> Path:
    shutil.copytree(erm, directory / "bare")
    shutil.rmtree(directory / "bare" / "checkpoints")
    return directory / "bare"


def older(directory: Path, erm: Path) -> Path:
    shutil.copytree(erm, directory / "older")
    path = directory / "older" / "config.json"
    content = json.loads(path.read_text())
    del content["optimizer"]["trainable"]
    path.write_text(json.dumps(content))
    return directory / "older"


def empty_file(directory: Path, erm: Path) -> Path:
    (directory / "empty.safetensors").touch()
    return directory / "empty.safetensors"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda directory, erm: directory / "none", "none does not exist"),
        (lambda directory, erm: directory, "not the workdir of a finished run"),
        (unfinished, "unfinished is not the workdir of a finished run (no results.json there)"),
        (without_checkpoints, "checkpoints does not exist; train the model again"),
        (older, "older was trained by an older corm_jax (config.optimizer.trainable is missing)"),
        (empty_file, "empty.safetensors: is damaged, or no safetensors file"),
    ],
)
def test_what_cannot_be_loaded_is_named(
    make: Callable[[Path, Path], Path], message: str, erm: Path, tmp_path: Path
):
    with pytest.raises(UserError) as info:
        load(init_config(make(tmp_path, erm)), tmp_path / "run")
    assert message in str(info.value)
    assert "\n" not in str(info.value)


def test_a_run_of_another_model_is_refused_before_anything_is_written(
    erm: Path, shapes_data_dir: Path, tmp_path: Path
):
    config = small_config("configs/resnet_erm.py", shapes_data_dir, **SMALLER, init=str(erm))
    with pytest.raises(UserError, match=f"is of the model {VIT}, not of .*=resnet10_nano; add --"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variant", ["demo", "folder", "imagenet"])
@pytest.mark.parametrize("method", METHODS)
def test_last_layer_methods_need_a_trained_model(variant: str, method: str, tmp_path: Path):
    config = small_config(f"configs/finetune.py:{variant},{method}", tmp_path)
    with pytest.raises(UserError, match=r"trainable=head keeps the rest .* --config\.init=DIR"):
        check_config(config)
    config.init = "runs/demo/vit_erm"
    check_config(config)


def test_unknown_method_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown method 'core' \(did you mean 'core_head'"):
        small_config("configs/finetune.py:demo,core", tmp_path)

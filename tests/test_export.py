"""A run that is exported predicts in timm what it predicted here."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from command import saved_arrays, small_config
from torch_models import import_torchvision

from corm_jax.convert import main
from corm_jax.data.dataset import evaluation_loader, open_dataset
from corm_jax.data.drawing import SHAPES
from corm_jax.runs import load_run
from corm_jax.state_dicts import read

RESNET = {"model__name": "resnet18", "data__image_size": 16}
VIT = {
    "model__name": "vit_tiny_patch16_224",
    "model__global_pool": "avg",
    "data__image_size": 32,
}
CHANGES = {
    "train__steps": 12,
    "train__ema_decay": 0.5,
    "eval__every": 4,
    "checkpoint__every": 4,
}

pytestmark = pytest.mark.slow


class Trained(NamedTuple):
    config: Any
    workdir: Path
    results: dict[str, Any]


def train_as(model: dict[str, Any], file: str, data_dir: Path, workdir: Path) -> Trained:
    from corm_jax.train import train

    config = small_config(f"configs/{file}.py", data_dir, **CHANGES, **model)
    return Trained(config, workdir, train(config, workdir))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shapes_data_dir: Path) -> Trained:
    return train_as(RESNET, "resnet_erm", shapes_data_dir, tmp_path_factory.mktemp("runs") / "run")


def export(workdir: Path, output: Path, *options: str) -> dict[str, Any]:
    assert main(["to-torch", str(workdir), f"--output={output}", *options]) == 0
    return json.loads(output.with_suffix(".json").read_text())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_predicts_what_the_run_predicted(
    trained: Trained, tmp_path: Path, suffix: str
) -> None:
    assert_timm_predicts_the_same(trained, tmp_path / f"model{suffix}")


def test_timm_predicts_what_a_vision_transformer_of_other_pooling_and_size_predicted(
    shapes_data_dir: Path, tmp_path: Path
) -> None:
    trained = train_as(VIT, "vit_erm", shapes_data_dir, tmp_path / "run")
    assert_timm_predicts_the_same(trained, tmp_path / "model.safetensors")


def assert_timm_predicts_the_same(trained: Trained, path: Path) -> None:
    torch, _ = pytest.importorskip("torch"), import_torchvision()
    timm = pytest.importorskip("timm")
    exported = export(trained.workdir, path)
    assert exported["label_names"] == list(SHAPES)
    theirs = timm.create_model(
        exported["architecture"],
        num_classes=exported["num_classes"],
        checkpoint_path=str(path),  # loaded strictly
        **exported["model_args"],
    ).eval()
    mean, std = (np.float32(exported["pretrained_cfg"][key]) for key in ("mean", "std"))

    dataset, run = open_dataset(trained.config), load_run(trained.workdir)
    loader, count = evaluation_loader(trained.config, dataset.validation, (0, 1))
    right = total = 0
    for batch in loader.batches(0, count):
        images = batch["image"].astype(np.float32) / 255
        ours, _ = jax.jit(lambda v, x: run.model.apply(v, x, train=False))(run.variables, images)
        inputs = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            logits = theirs(inputs).numpy()
        assert abs(logits).max() > 0.1
        np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4 * abs(logits).max())
        right += int(((logits.argmax(1) == batch["label"]) * batch["weight"]).sum())
        total += int(batch["weight"].sum())
    metrics = trained.results["metrics"]
    assert total == metrics["images"]
    assert right / total == pytest.approx(metrics["clean_plain"])
    assert exported["corm_jax"] == {
        "model": trained.config.model.name,
        "library": "timm",
        "step": 12,
        "metrics": metrics,
    }


def test_weights_are_the_averaged_ones(trained: Trained, tmp_path: Path) -> None:
    export(trained.workdir, tmp_path / "a.npz")
    saved = saved_arrays(trained.config, trained.workdir)
    found = read(tmp_path / "a.npz").state["fc.weight"].T
    np.testing.assert_array_equal(found, saved[".ema['params']['fc']['kernel']"])
    assert not np.array_equal(found, saved[".params['fc']['kernel']"])


def test_the_best_checkpoint_is_that_of_the_best_metric(trained: Trained, tmp_path: Path) -> None:
    exported = export(trained.workdir, tmp_path / "a.npz", "--which=best")
    history = [json.loads(line) for line in (trained.workdir / "history.jsonl").open()]
    measured = {r["step"]: r["validation/core"] for r in history if "validation/core" in r}
    assert measured.keys() == {4, 8}
    step = exported["corm_jax"]["step"]
    assert measured[step] == max(measured.values()) == exported["corm_jax"]["metrics"]["core"]
    export(trained.workdir, tmp_path / "b.npz")
    best, latest = (read(tmp_path / f"{name}.npz").state["fc.weight"] for name in "ab")
    assert not np.array_equal(best, latest)


def test_unfinished_and_damaged_runs_are_one_line(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def error(workdir: Path, *options: str) -> str:
        output = tmp_path / "a.npz"
        assert main(["to-torch", str(workdir), f"--output={output}", *options]) == 1
        assert not output.exists()
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    workdir = Path(shutil.copytree(trained.workdir, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "12")
    assert "checkpoints holds no checkpoint of step 12" in error(workdir)
    (workdir / "model.json").write_text('{"model": "resnet18"}')
    assert "model.json describes no model of ours: num_classes is None" in error(workdir)
    (workdir / "results.json").unlink()
    assert "is not the workdir of a finished run (no results.json there)" in error(workdir)


def test_a_run_that_saved_no_evaluated_step_has_no_best(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = Path(shutil.copytree(trained.workdir, tmp_path / "run"))
    for step in ("4", "8"):
        shutil.rmtree(workdir / "checkpoints" / step, ignore_errors=True)
    arguments = ["to-torch", str(workdir), f"--output={tmp_path / 'a.npz'}", "--which=best"]
    assert main(arguments) == 1
    assert f"{workdir} has no best checkpoint" in capsys.readouterr().err

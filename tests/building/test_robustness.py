"""Encoders from PyTorch checkpoints: every layout, files that are wrong, files that attack."""

import builtins
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from torch_models import import_torchvision, randomize

from corm_jax.errors import UserError
from corm_jax.masks.building import robustness
from corm_jax.models.normalizer import IMAGENET

torch = pytest.importorskip("torch")
MEAN, STD = (0.25, 0.5, 0.75), (0.125, 0.25, 0.375)  # exact in float32


def normalizer(prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}new_mean": torch.tensor(MEAN).reshape(3, 1, 1),
        f"{prefix}new_std": torch.tensor(STD).reshape(3, 1, 1),
    }


@pytest.fixture(scope="module")
def network() -> Any:
    return randomize(import_torchvision().models.resnet18(num_classes=7))


@pytest.fixture(scope="module")
def checkpoint(network: Any) -> dict[str, Any]:
    """What `robustness` saves: the model is within an attacker within DataParallel."""
    state = OrderedDict(normalizer("module.normalizer."))
    weights = network.state_dict()
    for prefix in ("module.model.", "module.attacker.model."):
        state.update({prefix + key: value for key, value in weights.items()})
    state.update(normalizer("module.attacker.normalize."))
    groups = [{"lr": 0.1, "params": [0, 1]}]
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": groups}
    return {"model": state, "optimizer": optimizer, "epoch": 90, "schedule": None, "amp": None}


def logits_of(path: Path, images: np.ndarray) -> tuple[Any, np.ndarray]:
    model, variables = robustness.load(path)
    logits, _ = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    return model, np.asarray(logits)


def expected_logits(network: Any, images: np.ndarray, mean: Any, std: Any) -> np.ndarray:
    normalized = (images - np.float32(mean)) / np.float32(std)
    with torch.no_grad():
        return network(torch.from_numpy(normalized.transpose(0, 3, 1, 2))).numpy()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(2, 48, 48, 3)).astype(np.float32)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_robustness_checkpoint_keeps_its_normaliser_and_logits(
    tmp_path: Path, checkpoint: dict, network: Any, images: np.ndarray, zipped: bool
) -> None:
    path = tmp_path / "l2_3.pt"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    model, logits = logits_of(path, images)
    assert (model.num_classes, model.statistics) == (7, (MEAN, STD))
    expected = expected_logits(network, images, MEAN, STD)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_resnet50_is_told_from_its_blocks(tmp_path: Path, images: np.ndarray) -> None:
    network = randomize(import_torchvision().models.resnet50(num_classes=4))
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": {**state, **normalizer("normalizer.")}}, tmp_path / "a.pt")
    model, logits = logits_of(tmp_path / "a.pt", images)
    assert model.stage_sizes == (3, 4, 6, 3)
    expected = expected_logits(network, images, MEAN, STD)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [True, False])
def test_plain_state_dicts_get_imagenets_statistics(
    tmp_path: Path, network: Any, prefix: str, nested: bool
) -> None:
    state = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if nested else state, tmp_path / "a.pth")
    model, variables = robustness.load(tmp_path / "a.pth")
    assert model.statistics == IMAGENET
    kernel = network.conv1.weight.detach().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["conv1"]["kernel"], kernel)


def test_safetensors_files_are_read(tmp_path: Path, network: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(network.state_dict(), tmp_path / "a.safetensors")
    _, variables = robustness.load(tmp_path / "a.safetensors")
    weight = network.fc.weight.detach().numpy()
    np.testing.assert_array_equal(variables["params"]["fc"]["kernel"], weight.T)
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match=r"b.safetensors: is damaged, or no safetensors file"):
        robustness.load(tmp_path / "b.safetensors")


class Attack:
    """Creates a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, checkpoint: dict, zipped: bool) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "was_here"
    torch.save({**checkpoint, "args": Attack(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil.pt: holds the Python object posix.mkdir") as error:
        robustness.load(path)
    assert "\n" not in str(error.value)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # the attack is a real one


def test_the_way_out_of_a_file_with_objects_works(tmp_path: Path, checkpoint: dict) -> None:
    path = tmp_path / "it's old.pt"
    torch.save({**checkpoint, "args": threading.Thread.run}, path)
    with pytest.raises(UserError, match="if you trust the file, save its weights") as error:
        robustness.load(path)
    command = str(error.value).partition("for example with ")[2].partition(" (pip install")[0]
    # dill, which unpickles as pickle does, need not be installed to test the rest.
    command = command.replace("import dill, torch", "import pickle as dill, torch")
    command = command.replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, timeout=100)
    model, _ = robustness.load(tmp_path / "it's old_weights.pt")
    assert model.num_classes == 7


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # where that byte changed
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_named(tmp_path: Path, zipped: bool) -> None:
    path, rng = tmp_path / "a.pt", np.random.default_rng(0)
    state = {"fc.weight": torch.zeros(2, 3), "epoch": 3}
    torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    cut = [whole[:size] for size in range(0, len(whole) - 1, max(1, len(whole) // 60))]
    changed = []
    for _ in range(200):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(len(data), size=5)] = rng.integers(256, size=5)
        changed.append(data.tobytes())
    for content in [*cut, *changed, b"<html>not found</html>", b"PK\x03\x04"]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pt: ") as error:
            robustness.load(path)
        assert "\n" not in str(error.value)


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        robustness.load(tmp_path)
    with pytest.raises(UserError, match=r"none.pt: cannot be read: No such file"):
        robustness.load(tmp_path / "none.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UserError, match=r"empty.pt: is damaged, or no PyTorch checkpoint"):
        robustness.load(tmp_path / "empty.pt")


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    models = import_torchvision().models
    torch.save({"model": models.resnet34().state_dict()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"resnet18 or resnet50 .*: BasicBlock blocks \(3, 4, 6, 3"):
        robustness.load(tmp_path / "a.pt")
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b.pt: its weights are not those of .*blocks: none"):
        robustness.load(tmp_path / "b.pt")
    torch.save(models.wide_resnet50_2().state_dict(), tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c.pt: the weights do not fit .*of another shape: layer1"):
        robustness.load(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("module.model.fc.weight"), r"has no classifier \(fc.weight"),
        (lambda state: state.pop("module.model.bn1.bias"), "missing: bn1.bias"),
        (lambda state: state.pop("module.normalizer.new_std"), "must have three values each"),
        (lambda state: state["module.normalizer.new_std"].zero_(), "std above 0"),
        (lambda state: state.update(note="trained"), "'note' is a str, not a tensor"),
        (lambda state: state.update({5: torch.ones(1)}), "holds a OrderedDict, not a state dict"),
    ],
)
def test_wrong_state_dicts_are_named(
    tmp_path: Path, checkpoint: dict, change: Any, message: str
) -> None:
    state = OrderedDict((key, value.clone()) for key, value in checkpoint["model"].items())
    change(state)
    torch.save({"model": state}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"a\.pt: .*{message}"):
        robustness.load(tmp_path / "a.pt")


def test_without_pytorch_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "torch":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'corm_jax\[torch\]'"):
        robustness.load(tmp_path / "a.pt")

"""Conversion on the command line: round trips, and files that are wrong."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command import run as run_command
from flax.traverse_util import flatten_dict

from corm_jax import model_file
from corm_jax.convert import main
from corm_jax.models import create_model
from corm_jax.models.normalizer import IMAGENET, INCEPTION
from corm_jax.state_dicts import encode, read
from corm_jax.torch_weights import abstract_variables, to_torch

SIZE = 32
RESNET, VIT = "resnet18", "vit_tiny_patch16_224"
MEAN, STD = (0.25, 0.5, 0.75), (0.125, 0.25, 0.375)  # exact in float32


def random_variables(name: str, classes: int = 5, seed: int = 0) -> dict[str, Any]:
    """Random numbers of all magnitudes: bits that any change of layout or dtype would show."""
    rng = np.random.default_rng(seed)
    shapes = abstract_variables(create_model(name, num_classes=classes, dtype="float32"), SIZE)
    return jax.tree.map(
        lambda leaf: (0.02 * rng.normal(size=leaf.shape)).astype(np.float32) ** 2, shapes
    )


def torch_state(name: str, library: str = "timm") -> dict[str, np.ndarray]:
    model = create_model(name, num_classes=5, dtype="float32")
    return to_torch(model, random_variables(name), library=library)


def convert(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def from_torch(path: Path, output: Path, name: str, *more: object) -> int:
    return convert(
        "from-torch", path, f"--model={name}", f"--output={output}", f"--image_size={SIZE}", *more
    )


@pytest.fixture
def state_file(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes the state dict of a model to a file."""

    def write(name: str = RESNET, suffix: str = ".safetensors", library: str = "timm") -> Path:
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(encode(torch_state(name, library), suffix))
        return path

    return write


@pytest.mark.parametrize("name", [RESNET, VIT])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_there_and_back_changes_no_bit(
    state_file: Callable[..., Path], tmp_path: Path, name: str, suffix: str
) -> None:
    if suffix == ".pth":
        pytest.importorskip("torch")
    source, ours, back = state_file(name, suffix), tmp_path / "o.safetensors", tmp_path / "b"
    assert from_torch(source, ours, name) == 0
    assert convert("to-torch", ours, f"--output={back}{suffix}") == 0
    found, expected = read(Path(f"{back}{suffix}")).state, torch_state(name)
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == np.float32
        assert found[key].tobytes() == array.tobytes(), key


def test_a_model_file_holds_flax_variables_and_what_they_are(
    state_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("cat\ndog\n sea lion\nelk\nowl\n")
    source, ours = state_file(VIT), tmp_path / "o.safetensors"
    options = ("--center_crop_share=0.9", "--interpolation=bicubic", f"--classes={names}")
    assert from_torch(source, ours, VIT, *options) == 0
    assert "vit_tiny_patch16_224, 5 classes, 32 pixels: " in capsys.readouterr().out
    description, variables, origin = model_file.read(ours)
    assert description.to_json() == {
        "model": VIT,
        "num_classes": 5,
        "class_names": ["cat", "dog", "sea lion", "elk", "owl"],
        "mean": list(INCEPTION.mean),
        "std": list(INCEPTION.std),
        "image_size": SIZE,
        "center_crop_share": 0.9,
        "interpolation": "bicubic",
        "head_bias": True,
        "global_pool": "",
    }
    digest = subprocess.run(["sha256sum", source], capture_output=True, text=True, check=True)
    assert origin == {"file": source.name, "sha256": digest.stdout.split()[0]}
    found, expected = flatten_dict(variables), flatten_dict(random_variables(VIT))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)
    model = description.create("float32")
    logits, _ = model.apply(variables, np.zeros((1, SIZE, SIZE, 3), np.float32), train=False)
    assert logits.shape == (1, 5)


def test_the_normaliser_is_the_files_else_the_librarys_else_the_options(
    state_file: Callable[..., Path], tmp_path: Path
) -> None:
    def statistics(source: Path, name: str, *options: str) -> Any:
        assert from_torch(source, tmp_path / "o.safetensors", name, "--overwrite", *options) == 0
        return model_file.read(tmp_path / "o.safetensors").description.statistics

    assert statistics(state_file(VIT), VIT) == INCEPTION
    assert statistics(state_file(VIT, library="torchvision"), VIT) == IMAGENET
    assert statistics(state_file(VIT), VIT, "--mean=0.25,0.5,0.75", "--std=1,2,4") == (
        MEAN,
        (1.0, 2.0, 4.0),
    )
    wrapped = {f"module.model.{key}": value for key, value in torch_state(RESNET).items()}
    for key, values in {"mean": MEAN, "std": STD}.items():
        wrapped[f"module.normalizer.new_{key}"] = np.array(values, np.float32).reshape(3, 1, 1)
    (tmp_path / "madry.npz").write_bytes(encode(wrapped, ".npz"))
    assert statistics(tmp_path / "madry.npz", RESNET) == (MEAN, STD)


def test_the_config_beside_an_export_is_timms(
    state_file: Callable[..., Path], tmp_path: Path
) -> None:
    names = tmp_path / "classes.json"
    names.write_text('["a", "b", "c", "d", "e"]')
    from_torch(state_file(VIT), tmp_path / "o.safetensors", VIT, f"--classes={names}")
    assert convert("to-torch", tmp_path / "o.safetensors", f"--output={tmp_path / 'e.npz'}") == 0
    config = json.loads((tmp_path / "e.json").read_text())
    assert config["architecture"] == VIT
    assert config["label_names"] == ["a", "b", "c", "d", "e"]
    assert config["model_args"] == {"img_size": SIZE}  # position embeddings of another size
    assert config["pretrained_cfg"] == {
        "num_classes": 5,
        "input_size": [3, SIZE, SIZE],
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


def test_a_head_without_bias_is_kept_in_our_files_and_exported_with_one_of_zeros(
    state_file: Callable[..., Path], tmp_path: Path
) -> None:
    first, ours, exported = (
        tmp_path / name for name in ("1.safetensors", "2.safetensors", "e.npz")
    )
    from_torch(state_file(), first, RESNET)
    description, variables, origin = model_file.read(first)
    del variables["params"]["fc"]["bias"]
    description = dataclasses.replace(description, head_bias=False)
    model_file.write(ours, model_file.Model(description, variables, origin))
    assert model_file.read(ours).description == description
    assert convert("to-torch", ours, f"--output={exported}") == 0
    state, _ = read(exported)
    expected = torch_state(RESNET) | {"fc.bias": np.zeros(5, np.float32)}
    assert state.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(state[key], array)


def test_models_that_timm_lacks_are_exported_with_a_note(
    state_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from_torch(state_file("resnet10_nano"), tmp_path / "o.safetensors", "resnet10_nano")
    assert convert("to-torch", tmp_path / "o.safetensors", f"--output={tmp_path / 'e.npz'}") == 0
    assert "timm has no resnet10_nano" in capsys.readouterr().out
    config = json.loads((tmp_path / "e.json").read_text())
    assert (config["architecture"], config["model_args"]) == (None, {})
    assert config["corm_jax"]["model"] == "resnet10_nano"


def test_a_folded_normaliser_changes_no_logits(
    state_file: Callable[..., Path], tmp_path: Path
) -> None:
    ours, folded = tmp_path / "o.safetensors", tmp_path / "f.safetensors"
    from_torch(state_file(VIT), ours, VIT, "--mean=0.25,0.5,0.75", "--std=0.125,0.25,0.375")
    arguments = ("--output=" + str(tmp_path / "e.npz"), "--fold_normalizer")
    assert convert("to-torch", ours, *arguments) == 0
    config = json.loads((tmp_path / "e.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"]) == ([0.0] * 3, [1.0] * 3)
    unit = ("--mean=0,0,0", "--std=1,1,1")
    assert from_torch(tmp_path / "e.npz", folded, VIT, *unit) == 0
    images = np.random.default_rng(1).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    patches = []
    for path in (ours, folded):
        description, variables, _ = model_file.read(path)
        model = description.create("float32")
        _, outputs = jax.jit(lambda v, x, m=model: m.apply(v, x, train=False))(variables, images)
        patches.append(np.asarray(outputs["block00"]))
    assert abs(patches[0]).max() > 1e-3
    np.testing.assert_allclose(patches[1], patches[0], rtol=1e-4, atol=1e-6)


def test_the_normaliser_is_not_folded_into_a_padded_layer(
    state_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from_torch(state_file(RESNET), tmp_path / "o.safetensors", RESNET)
    arguments = (f"--output={tmp_path / 'e.npz'}", "--fold_normalizer")
    assert convert("to-torch", tmp_path / "o.safetensors", *arguments) == 1
    assert "first convolution of resnet18 pads its input" in capsys.readouterr().err
    assert not (tmp_path / "e.npz").exists()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def made_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (truncated, "is damaged, or no"),
        (emptied, "is damaged, or no"),
        (made_a_directory, "cannot be read: Is a directory"),
        (Path.unlink, "cannot be read: No such file or directory"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(
    state_file: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    suffix: str,
    harm: Callable[[Path], None],
    message: str,
) -> None:
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = state_file(RESNET, suffix)
    harm(path)
    assert from_torch(path, tmp_path / "out.safetensors", RESNET) == 1
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {path}: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == ([path] if path.exists() else [])


def test_wrong_models_and_classes_are_one_line(
    state_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, output = state_file(RESNET), tmp_path / "out.safetensors"
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "no.json").write_text('{"a": 1}')

    def error(name: str, *options: object) -> str:
        assert from_torch(source, output, name, *options) == 1
        assert not output.exists()
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    wrong = error(VIT)
    for key in torch_state(VIT).keys() | torch_state(RESNET).keys():
        assert key in wrong  # every missing and every unknown one
    assert "80 missing: layer1.2.bn1.bias" in error("resnet34")  # 8 blocks of 2 layers of 5
    assert "(did you mean 'resnet18'?)" in error("resnet81")
    assert "its weights are of 5 classes, not 4" in error(RESNET, f"--classes={tmp_path}/four.txt")
    assert "no.json must hold a name" in error(RESNET, f"--classes={tmp_path}/no.json")
    assert "--mean and --std together" in error(RESNET, "--mean=0,0,0")
    output.touch()
    assert from_torch(source, output, RESNET) == 1
    assert "exists already" in capsys.readouterr().err
    assert output.read_bytes() == b""


class Attack:
    """Creates a directory where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path, target = tmp_path / "evil.pth", tmp_path / "was_here"
    torch.save({"state_dict": {"fc.bias": torch.zeros(5)}, "args": Attack(target)}, path)
    arguments = ["from-torch", str(path), f"--model={RESNET}", f"--output={tmp_path}/o.safetensors"]
    code, output, errors = run_command(arguments, module="corm_jax.convert")
    assert (code, output) == (1, "")
    assert errors.startswith(f"error: {path}: holds the Python object posix.mkdir")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]
    torch.load(path, weights_only=False)
    assert target.exists()  # the attack is a real one


def test_inputs_of_to_torch_that_are_none_are_one_line(
    state_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, ours = state_file(RESNET), tmp_path / "o.safetensors"
    from_torch(source, ours, RESNET)
    capsys.readouterr()
    output = tmp_path / "e.npz"

    def error(path: Path, output: Path = output) -> str:
        assert convert("to-torch", path, f"--output={output}") == 1
        assert not (tmp_path / "e.npz").exists()
        assert not (tmp_path / "e.json").exists()
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "does not exist" in error(tmp_path / "nowhere")
    assert "is not the workdir of a finished run" in error(tmp_path)
    assert "is no model file of corm_jax" in error(source)
    assert "unknown format of --output: '.onnx'" in error(ours, tmp_path / "e.onnx")
    content = ours.read_bytes()
    ours.write_bytes(content.replace(b"resnet18", b"resnet34"))
    assert "the weights do not fit the model; 80 missing: batch_stats/layer1_block2" in error(ours)
    ours.write_bytes(content.replace(b'\\"num_classes\\": 5', b'\\"num_classes\\": 0'))
    assert "num_classes is 0" in error(ours)
    ours.write_bytes(content[:-8])
    assert f"{ours}: is damaged, or no safetensors file" in error(ours)


def test_conversion_without_pytorch_needs_none(
    state_file: Callable[..., Path], tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from corm_jax.convert import main\n"
        f"assert main(['from-torch', {str(state_file())!r}, '--model={RESNET}', "
        f"'--output={tmp_path}/o.safetensors']) == 0\n"
        f"assert main(['to-torch', '{tmp_path}/o.safetensors', '--output={tmp_path}/e.npz']) == 0\n"
        f"sys.exit(main(['to-torch', '{tmp_path}/o.safetensors', '--output={tmp_path}/f.pth']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr == (
        "error: writing a .pth file needs PyTorch: pip install 'corm_jax[torch]'\n"
    )
    assert not (tmp_path / "f.pth").exists()

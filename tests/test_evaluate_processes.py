"""python -m corm_jax.evaluate by two processes: it writes what one does, and ends when told."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from launching import start_two

from corm_jax import model_file
from corm_jax.description import Description
from corm_jax.evaluate import main
from corm_jax.evaluation_files import read_outcomes
from corm_jax.models.normalizer import Statistics
from corm_jax.torch_weights import abstract_variables

pytestmark = pytest.mark.slow

MODULE = "--module=corm_jax.evaluate"
SETTINGS = ("--trials=2", "--batch_size=8", "--split=train", "--protocol=complement")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file of ours, of random weights."""
    description = Description(
        model="vit_nano_patch8_48",
        num_classes=2,
        class_names=("class0", "class1"),
        statistics=Statistics((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        image_size=16,
        center_crop_share=1.0,
        interpolation="bilinear",
        head_bias=True,
        global_pool="",
    )
    rng = np.random.default_rng(0)
    shapes = abstract_variables(description.create("float32"), description.image_size)
    variables = jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32), shapes)
    path = tmp_path / "model.safetensors"
    model_file.write(path, model_file.Model(description, variables, {}))
    return path


def test_two_processes_write_what_one_does(
    model: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder, one, two = make_folder(classes=2, images=13), tmp_path / "one", tmp_path / "two"
    arguments = [str(model), f"--data=folder:{folder}", *SETTINGS]
    assert main([*arguments, f"--output={one}"]) == 0
    process = start_two(MODULE, "--", *arguments, f"--output={two}")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, (output, errors)
    lines = [line for line in output.splitlines() if not line.startswith("[0] ")]
    assert lines == []  # the first process speaks for both
    found, expected = (json.loads((path / "results.json").read_text()) for path in (two, one))
    assert found["provenance"] == expected["provenance"]
    of_two, of_one = (read_outcomes(path / "complement.npz") for path in (two, one))
    np.testing.assert_array_equal(of_two.id, of_one.id)
    assert len(set(of_one.id.tolist())) == 20  # each once, though the last batch is padded
    for name, outcome in of_one.outcomes.items():
        np.testing.assert_array_equal(of_two.outcomes[name].number, outcome.number)
        tolerance = 1e-5 if name == "confidence" else 0
        np.testing.assert_allclose(of_two.outcomes[name].correct, outcome.correct, atol=tolerance)
    metrics, wanted = (
        results["protocols"]["complement"]["metrics"] for results in (found, expected)
    )
    assert metrics == pytest.approx(wanted, abs=1e-5)
    assert 0 < metrics["core"] < 1
    assert metrics["core"] != metrics["spurious"]
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


def test_sigterm_ends_all_processes_at_once(
    model: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = [str(model), f"--data=folder:{make_folder()}", *SETTINGS, "--trials=1000000"]
    process = start_two(MODULE, "--", *arguments, f"--output={tmp_path / 'none'}")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("[0] masks: ")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "killed after" not in errors
    assert not (tmp_path / "none" / "results.json").exists()

"""The benchmark of objectives, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

from command import REPOSITORY


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "objectives.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_steps_are_compared_with_erms(tmp_path: Path) -> None:
    path = tmp_path / "objectives.json"
    small = ("--image_size=16", "--batch_size=8", "--rounds=1", "--models", "vit_nano_patch8_48")
    done = run(*small, "--presets", "rrr", "--json", str(path))
    assert done.returncode == 0, done.stderr
    records = {record["name"]: record for record in json.loads(path.read_text())}
    assert records["step_over_erm/vit_nano_patch8_48/erm"]["value"] == 1.0
    assert records["step_over_erm/vit_nano_patch8_48/rrr"]["value"] > 0
    memory = [records[f"step_memory/vit_nano_patch8_48/{name}"]["value"] for name in ("erm", "rrr")]
    assert 0 < memory[0] < memory[1]
    assert done.stdout.count("| rrr |") == 1


def test_a_preset_that_a_model_cannot_have_is_left_out_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "objectives.json"
    name = "deit_tiny_patch16_224"
    small = ("--image_size=16", "--batch_size=8", "--rounds=1", "--models", name)
    done = run(*small, "--presets", "cfce", "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert f"{name}: cfce is left out: config.terms.core_focused: cfce needs" in done.stderr
    assert [record["name"] for record in json.loads(path.read_text())] == [
        f"{kind}/{name}/erm" for kind in ("step_over_erm", "processor_over_erm", "step_memory")
    ]


def test_an_image_size_that_the_model_cannot_take_is_one_line() -> None:
    done = run("--image_size=15", "--models", "vit_nano_patch8_48")
    assert done.returncode == 1
    assert done.stderr == (
        "error: config.data.image_size=15 is not a multiple of the patch size 8 of "
        "vit_nano_patch8_48\n"
    )

"""The benchmark of sharding, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import REPOSITORY


@pytest.mark.slow
def test_memory_of_the_state_falls_with_fsdp(tmp_path: Path) -> None:
    path, model = tmp_path / "sharding.json", "vit_tiny_patch16_224"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "sharding.py"), "--model", model]
    small = ["--image_size=32", "--preset=erm", "--devices=4", "--per_device_batch=2", "--remat=0"]
    done = subprocess.run(
        [*command, *small, "--json", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {record["name"]: record["value"] for record in json.loads(path.read_text())}
    state = [found[f"memory_state/{model}/4/{mesh}/kept"] for mesh in ("data", "fsdp")]
    # 5.6 million parameters, each with two moments, in float32. Small arrays are not sharded.
    assert state[0] == pytest.approx(5.6 * 3 * 4, rel=0.03)
    assert state[0] / 4 < state[1] < 1.3 * state[0] / 4
    assert all(found[f"memory_working/{model}/4/{mesh}/kept"] > 0 for mesh in ("data", "fsdp"))
    assert done.stdout.count("\n| 4 |") == 2


def test_a_size_that_the_model_cannot_take_is_one_line() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "sharding.py")]
    done = subprocess.run(
        [*command, "--image_size=15", "--devices=1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: config.data.image_size=15 is not a multiple of the patch")

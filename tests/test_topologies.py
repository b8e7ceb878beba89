"""One training on every topology: the same losses, and the collectives that it takes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from topologies import STEPS, kinds

HERE = Path(__file__).parent
MODELS = ("vit", "resnet")
MESHES = {"data8": (8, 1), "data4_fsdp2": (4, 2), "fsdp8": (1, 8)}
TOLERANCE = 1e-5


def start(topologies: list, devices: int, **environment: str) -> subprocess.Popen[str]:
    flags = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"  # a third of the time to compile
    )
    return subprocess.Popen(
        [sys.executable, HERE / "topologies.py", json.dumps(topologies)],
        env={**os.environ, "XLA_FLAGS": flags, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[dict]:
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], dict]:
    """What was found of each (model, topology)."""
    names = [(model, "one") for model in MODELS]
    names += [(model, mesh) for model in MODELS for mesh in MESHES]
    meshes = {"one": (1, 1, 1)} | {mesh: (*shape, 8) for mesh, shape in MESHES.items()}
    return dict(zip(names, finish(start([(m, *meshes[t]) for m, t in names], 8)), strict=True))


@pytest.fixture(scope="module")
def two_processes() -> dict[tuple[str, str], list[dict]]:
    """What each of two processes with four devices found of each (model, mesh)."""
    names = [(model, mesh) for model in MODELS for mesh in ("data8", "data4_fsdp2")]
    coordinator = f"localhost:{free_port()}"
    processes = [
        start(
            [(model, *MESHES[mesh], 8) for model, mesh in names],
            4,
            CORM_COORDINATOR=coordinator,
            CORM_NUM_PROCESSES="2",
            CORM_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    return dict(zip(names, zip(*map(finish, processes), strict=True), strict=True))


def assert_same_curve(losses: list[float], expected: list[float], what: str) -> None:
    difference = np.abs(np.subtract(losses, expected)).max()
    print(f"loss_curve_difference {what}: {difference:.1e} over {STEPS} steps")
    assert len(losses) == STEPS
    assert expected[-1] < 0.9 * expected[0]  # it learns
    assert difference < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("model", MODELS)
def test_every_mesh_has_the_loss_curve_of_one_device(found: dict, model: str, mesh: str) -> None:
    losses = found[model, mesh]["losses"]
    assert_same_curve(losses, found[model, "one"]["losses"], f"{model} {mesh}")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data8", "data4_fsdp2"])
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_have_the_loss_curve_of_one_device(
    found: dict, two_processes: dict, model: str, mesh: str
) -> None:
    first, second = two_processes[model, mesh]
    assert first == second
    assert_same_curve(first["losses"], found[model, "one"]["losses"], f"{model} 2 x 4 {mesh}")


def test_placeholder(found):
    for key, value in found.items():
        print(key, kinds(value["collectives"]))
        for c in value["collectives"]:
            print("   ", c[0], c[1][:8], len(c[1]))

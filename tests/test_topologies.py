"""One training on every topology: the same losses, and the collectives that it takes."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from processes import environments
from stepping import make_config, one_device
from topologies import MODELS, STEPS, kinds

from corm_jax.sharding import create_mesh
from corm_jax.state import abstract_state

HERE = Path(__file__).parent
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
    processes = [
        start([(model, *MESHES[mesh], 8) for model, mesh in names], 4, **variables)
        for variables in environments(2)
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


def shapes_of(model: str, mesh: str) -> tuple[set, set]:
    """Returns the shapes of the parameters that a mesh shards, and of all arrays of parameters.

    Whole and in shards; without dimensions of 1 and in any order, as XLA transposes them.
    """
    config = make_config("noise")
    abstract = abstract_state(config, MODELS[model], create_mesh(*MESHES[mesh])).params
    sharded, all_of_them = set(), {()}
    for leaf in jax.tree.leaves(abstract):
        shard = leaf.sharding.shard_shape(leaf.shape)
        all_of_them |= {plain(leaf.shape), plain(shard)}
        if shard != leaf.shape:
            sharded.add(plain(leaf.shape))
    return sharded, all_of_them


def plain(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(length for length in shape if length > 1))


def moved(value: dict, *kinds: str) -> list[list[tuple[int, ...]]]:
    """Returns the shapes that each collective of some kinds moves."""
    return [
        [plain([int(n) for n in re.findall(r"\d+", shape.partition("[")[2])]) for shape in shapes]
        for kind, shapes in value["collectives"]
        if kind in kinds
    ]


@pytest.mark.slow
def test_data_parallelism_of_a_vit_takes_one_all_reduce_of_all_gradients(found: dict) -> None:
    assert not found["vit", "one"]["collectives"]
    value = found["vit", "data8"]
    weights, gradients = moved(value, "all-reduce")
    assert set(kinds(value["collectives"])) == {"all-reduce"}
    assert weights == [()]  # the sum of the examples' weights, which the losses are divided by
    parameters = jax.tree.leaves(
        abstract_state(make_config("noise"), MODELS["vit"], one_device()).params
    )
    assert not Counter(plain(leaf.shape) for leaf in parameters) - Counter(gradients)


@pytest.mark.slow
def test_data_parallelism_of_a_resnet_also_reduces_statistics(found: dict) -> None:
    """Of the whole batch, in each norm: forward, and backward where they are gradients as well."""
    value = found["resnet", "data8"]
    assert set(kinds(value["collectives"])) == {"all-reduce"}
    groups = moved(value, "all-reduce")
    kernels = [group for group in groups if any(len(shape) > 1 for shape in group)]
    statistics = [group for group in groups if group not in kernels]
    norms = sum("bn" in name for name in flatten_dict(resnet_parameters(), sep="/")) // 2
    assert len(statistics) <= 2 * norms
    # The stem's kernel waits for a gradient of its norm, which travels with the other kernels.
    assert len(kernels) <= 2


def resnet_parameters() -> dict:
    return abstract_state(make_config("noise"), MODELS["resnet"], one_device()).params


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data4_fsdp2", "fsdp8"])
@pytest.mark.parametrize("model", MODELS)
def test_sharding_gathers_parameters_and_moves_no_activations(
    found: dict, model: str, mesh: str
) -> None:
    value = found[model, mesh]
    # XLA for CPUs reduces a whole gradient and takes a slice where TPUs reduce and scatter.
    assert set(kinds(value["collectives"])) == {"all-gather", "all-reduce"}
    sharded, parameters = shapes_of(model, mesh)
    assert sharded
    gathered = [shape for group in moved(value, "all-gather") for shape in group]
    assert set(gathered) == sharded
    reduced = {shape for group in moved(value, "all-reduce") for shape in group}
    assert sharded <= reduced
    assert reduced <= parameters

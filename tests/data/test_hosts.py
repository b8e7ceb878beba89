"""Hosts that each load their part of the batches: real processes, from the start and resumed."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corm_jax.config import base_config
from corm_jax.data.dataset import open_dataset, training_loader
from corm_jax.data.pipeline import Split
from corm_jax.data.spurious_shapes import SpuriousShapes

IMAGES = SpuriousShapes.builder_configs["tiny"].train_images
EPOCHS = 3
BATCH_SIZES = (14, 36)  # neither divides the number of images
RESUMED_AT = {14: 9, 36: 4}  # in mid-epoch


def steps(batch_size: int) -> int:
    return math.ceil(EPOCHS * IMAGES / batch_size)


def start(data_dir: Path, index: int, count: int, resumed: bool) -> subprocess.Popen[str]:
    first = RESUMED_AT if resumed else dict.fromkeys(BATCH_SIZES, 0)
    ranges = json.dumps({size: [first[size], steps(size)] for size in BATCH_SIZES})
    script = Path(__file__).with_name("host_process.py")
    return subprocess.Popen(
        [sys.executable, script, data_dir, str(index), str(count), ranges],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def hosts(shapes_data_dir: Path) -> dict[tuple[int, int, bool], dict]:
    """What each of five processes printed: (index, count, resumed) -> {batch size: ...}."""
    keys = [(0, 1, False), *((index, 2, resumed) for resumed in (False, True) for index in (0, 1))]
    processes = {key: start(shapes_data_dir, *key) for key in keys}
    printed = {}
    for key, process in processes.items():
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        printed[key] = json.loads(output)
    return printed


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("resumed", [False, True])
def test_two_processes_load_the_batches_of_one(
    hosts: dict[tuple[int, int, bool], dict], batch_size: int, resumed: bool
) -> None:
    """The same images with the same augmentation and masks, in the same order."""
    assert IMAGES % batch_size
    first = RESUMED_AT[batch_size] if resumed else 0
    whole = hosts[0, 1, False][str(batch_size)]["batches"][first:]
    halves = [hosts[i, 2, resumed][str(batch_size)]["batches"] for i in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole
    assert {len(batch) for half in halves for batch in half} == {batch_size // 2}
    assert len(set(np.ravel(whole))) > 0.9 * np.size(whole)  # of different content


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("resumed", [False, True])
def test_in_each_epoch_two_processes_read_disjoint_parts_of_the_whole(
    hosts: dict[tuple[int, int, bool], dict], batch_size: int, resumed: bool
) -> None:
    first = RESUMED_AT[batch_size] if resumed else 0
    assert (first * batch_size % IMAGES > 0) == resumed
    read = [hosts[i, 2, resumed][str(batch_size)]["read"] for i in (0, 1)]
    # As many as the steps that are left need: a resume replays nothing.
    needed = (steps(batch_size) - first) * batch_size // 2
    assert [len(part) for part in read] == [needed, needed]
    rows = np.reshape(read, (2, -1, batch_size // 2)).swapaxes(0, 1)
    positions = first * batch_size + np.arange(rows.size).reshape(rows.shape)
    for epoch in range(EPOCHS):
        parts = [rows[:, i][positions[:, i] // IMAGES == epoch].tolist() for i in (0, 1)]
        assert not set(parts[0]) & set(parts[1])
        together = parts[0] + parts[1]
        assert len(together) == len(set(together))
        begun = max(0, first * batch_size - epoch * IMAGES)  # read before the resume
        assert len(together) == max(0, IMAGES - begun)


def test_a_resume_reads_what_the_run_would_have_read(
    hosts: dict[tuple[int, int, bool], dict],
) -> None:
    for size in BATCH_SIZES:
        for index in (0, 1):
            whole = hosts[index, 2, False][str(size)]["read"]
            resumed = hosts[index, 2, True][str(size)]["read"]
            assert resumed == whole[RESUMED_AT[size] * size // 2 :]


@pytest.fixture(scope="module")
def training_images(shapes_data_dir: Path) -> Split:
    config = base_config("erm")
    config.data.tfds_name, config.data.data_dir = "spurious_shapes/tiny", str(shapes_data_dir)
    return open_dataset(config).train


@settings(max_examples=6, deadline=None)
@given(hosts=st.integers(2, 4), share=st.integers(1, 6), step=st.integers(0, 1000))
def test_any_number_of_hosts_loads_the_same_global_batch(
    training_images: Split, hosts: int, share: int, step: int
) -> None:
    config = base_config("erm")
    config.data.image_size, config.train.batch_size = 16, hosts * share

    def load(index: int, count: int) -> dict[str, np.ndarray]:
        (batch,) = training_loader(config, training_images, (index, count)).batches(step, step + 1)
        return batch

    parts = [load(index, hosts) for index in range(hosts)]
    for key, value in load(0, 1).items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)

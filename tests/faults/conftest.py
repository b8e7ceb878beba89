"""An undisturbed run to compare with, and one that was killed half-way; made once."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from command import saved_arrays, small_config
from fault_table import recorder
from trainings import CHANGES, CONFIG, STEPS, Training

from corm_jax.files import locked


@pytest.fixture
def fault(
    record_property: Callable[[str, object], None],
) -> Callable[[str], contextlib.AbstractContextManager[list[int]]]:
    """Enters a fault, and what becomes of the run, into the table."""
    return recorder(record_property)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the processes of pytest-xdist have in common."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "faults"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="session")
def data_dir(shared: Path) -> Path:
    """The data of all runs: a run goes on with the data directory that it began with."""
    from corm_jax.data.prepare import prepare_embedded

    prepare_embedded("spurious_shapes/tiny", shared / "data")
    return shared / "data"


@pytest.fixture(scope="session")
def whole(shared: Path, data_dir: Path) -> Training:
    """A run that nothing disturbed, evaluated."""
    training = Training(shared / "whole", data_dir, shared / "cache")
    with locked(shared / "whole.lock"):
        if not (training.workdir / "results.json").exists():
            running = training.start()
            assert running.end() == 0, running.printed()
    return training


@pytest.fixture(scope="session")
def killed_at_half(shared: Path, whole: Training) -> Training:
    """A run that was killed after its tenth step, with checkpoints of steps 4 and 8."""
    training = Training(shared / "half", whole.data_dir, whole.cache)
    with locked(shared / "half.lock"):
        if not training.workdir.exists():
            running = training.start()
            running.wait_until(lambda: training.steps_taken() >= 10)
            running.wait_until(training.checkpoint(8).exists)
            running.kill()
    return training


@pytest.fixture
def half(killed_at_half: Training, tmp_path: Path) -> Training:
    """A copy of the run that was killed."""
    shutil.copytree(killed_at_half.workdir, tmp_path / "half")
    return killed_at_half._replace(workdir=tmp_path / "half")


@pytest.fixture
def fresh(whole: Training, tmp_path: Path) -> Training:
    """A run that is not started yet."""
    return whole._replace(workdir=tmp_path / "run")


class Trace(NamedTuple):
    """What a training leaves behind: arrays of the last checkpoint, and its history."""

    arrays: dict[str, np.ndarray]
    history: list[dict[str, float]]


def trace(training: Training) -> Trace:
    config = small_config(CONFIG, training.data_dir, **CHANGES)
    return Trace(saved_arrays(config, training.workdir), training.history())


class Check:
    """Asserts that a training ended bit by bit as an undisturbed one."""

    def __init__(self, undisturbed: Training) -> None:
        self._expected = trace(undisturbed)
        assert len(self._expected.arrays) > 100  # parameters and both moments
        assert [record["step"] for record in self._expected.history] == list(range(1, STEPS + 1))

    def __call__(self, training: Training, history: bool = True) -> None:
        found = trace(training)
        assert found.arrays.keys() == self._expected.arrays.keys()
        for path, array in self._expected.arrays.items():
            np.testing.assert_array_equal(
                array.view(np.uint32), found.arrays[path].view(np.uint32), err_msg=path
            )
        assert not history or found.history == self._expected.history


@pytest.fixture(scope="session")
def check(whole: Training) -> Check:
    """Compares with the run that nothing disturbed."""
    return Check(whole)


@pytest.fixture(scope="session")
def check_pair(shared: Path, data_dir: Path) -> Check:
    """Compares with a run of two processes that nothing disturbed."""
    training = Training(shared / "pair", data_dir, shared / "pair_cache")
    with locked(shared / "pair.lock"):
        if not training.checkpoint(STEPS).exists():
            training.finish(pair=True)
    return Check(training)


@pytest.fixture
def fresh_pair(shared: Path, data_dir: Path, tmp_path: Path) -> Training:
    """A run of two processes that is not started yet."""
    return Training(tmp_path / "run", data_dir, shared / "pair_cache")

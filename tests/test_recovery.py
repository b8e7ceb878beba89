"""Runs that are killed and started again end as if nothing had happened."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import run, saved_arrays, small_config, small_flags, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAME = "configs/vit_corm.py:demo,corm_two_term"
CHANGES = {"train__steps": 32, "checkpoint__every": 4, "eval__every": 8}
CLOCK = {"train/images_per_second", "train/data_wait"}

pytestmark = pytest.mark.slow


def history(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCK} for x in lines]


def kill_when(condition: Callable[[], bool], flags: list[str], cache: Path) -> None:
    """Starts the command and kills it, without warning, as soon as the condition holds."""
    process = start(flags, cache)
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended before it was killed: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors


def saving(workdir: Path, step: int) -> bool:
    """Whether the checkpoint of a step is being written at this moment."""
    return any((workdir / "checkpoints").glob(f"{step}.orbax-checkpoint-tmp*"))


def logged(workdir: Path, step: int) -> bool:
    path = workdir / "history.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()


def test_killed_runs_end_bit_identical_to_an_uninterrupted_one(
    tmp_path: Path, shapes_data_dir: Path
) -> None:
    cache, whole, killed = tmp_path / "cache", tmp_path / "whole", tmp_path / "killed"
    code, _, errors = run(small_flags(NAME, shapes_data_dir, whole, **CHANGES), cache)
    assert code == 0, errors

    flags = small_flags(NAME, shapes_data_dir, killed, **CHANGES)
    final = killed / "checkpoints" / "32"
    moments: list[Callable[[], bool]] = [
        lambda: saving(killed, 4),  # in the middle of the first save
        lambda: logged(killed, 8),  # between a step and the save of it, beside an evaluation
        lambda: saving(killed, 24),  # with older checkpoints beside it
        final.exists,  # right when a checkpoint appears: trained, not evaluated
    ]
    for moment in moments:
        kill_when(moment, flags, cache)
        assert not (killed / "results.json").exists()
    code, _, errors = run(flags, cache)
    assert code == 0, errors
    assert "going on from the checkpoint of step 32" in errors

    config = small_config(NAME, shapes_data_dir, **CHANGES)
    expected, found = saved_arrays(config, whole), saved_arrays(config, killed)
    assert expected.keys() == found.keys()
    assert len(expected) > 100  # parameters and both moments
    for path, array in expected.items():
        np.testing.assert_array_equal(
            array.view(np.uint32), found[path].view(np.uint32), err_msg=path
        )

    assert history(killed) == history(whole)
    steps = [record["step"] for record in history(killed) if "train/loss" in record]
    assert steps == [4, 8, 12, 16, 20, 24, 28, 32]
    metrics = [json.loads((w / "results.json").read_text())["metrics"] for w in (whole, killed)]
    assert metrics[0] == metrics[1]

    events = EventAccumulator(str(killed / "tensorboard"))
    events.Reload()
    assert {"train/loss", "validation/core"} <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("train/loss")] == steps
    assert [event.step for event in events.Tensors("validation/core")] == [8, 16, 24]


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, shapes_data_dir: Path) -> None:
    workdir = tmp_path / "run"
    flags = small_flags(NAME, shapes_data_dir, workdir, train__steps=100_000, checkpoint__every=4)
    process = start(flags)
    while not (workdir / "checkpoints" / "4").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped; the same command goes on from the last checkpoint"
    assert "Traceback" not in errors

"""Heartbeats, and the end of what hangs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from corm_jax.watch import EXIT_CODE, SAVE, STEP, Watch


def wait_for(path: Path, condition: Callable[[dict], bool]) -> dict:
    deadline = time.monotonic() + 10
    while True:
        if path.exists() and condition(found := json.loads(path.read_text())):
            return found
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_heartbeat_tells_the_step_and_what_is_being_done(tmp_path: Path) -> None:
    watch, path = Watch(tmp_path, 0), tmp_path / "heartbeat" / "0.json"
    with watch.running():
        found = wait_for(path, lambda found: True)
        assert found["pid"] == os.getpid()
        assert "step" not in found
        with watch.during(SAVE):
            watch.logged(5, {"loss": 0.25})
            found = wait_for(path, lambda found: found.get("step") == 5)
            assert found["activity"] == "saving a checkpoint"
            assert found["loss"] == 0.25
        batches = watch.batches(iter("ab"), STEP)
        assert next(batches) == "a"
        watch.logged(6, {})
        found = wait_for(path, lambda found: found["step"] == 6)
        assert found["activity"] == "waiting for a training step"
        assert "loss" not in found
        assert list(batches) == ["b"]
        watch.logged(7, {})
        found = wait_for(path, lambda found: found["step"] == 7)
        assert found["activity"] == "waiting for data"
        watch.logged(8, {})
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert json.loads(path.read_text())["step"] == 8  # the last one is not lost


def test_a_heartbeat_that_cannot_be_written_disturbs_nothing(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").write_text("a file where the directory should be")
    with Watch(tmp_path, 0).running():
        time.sleep(0.1)


HANGS = """
import sys, time
from pathlib import Path
from corm_jax.watch import DATA, STEP, Watch

def answers_no_more():
    time.sleep(60)

def batches():
    for number in range(3):
        time.sleep(0.3)
        yield number
    answers_no_more()

watch = Watch(Path(sys.argv[1]), stall_minutes=0.02)
with watch.running():
    for number in watch.batches(batches(), STEP):
        watch.logged(number + 1, {})
        time.sleep(0.3)
"""


@pytest.mark.slow
def test_what_hangs_is_ended_with_its_name_and_place(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert time.monotonic() - began < 60
    assert done.returncode == EXIT_CODE == 74
    assert "in answers_no_more" in done.stderr  # where it hangs
    assert done.stderr.splitlines()[-1] == (
        "error: waiting for data for 0.0 minutes after step 3: the storage of the images or masks "
        "does not answer. The same command goes on from the last checkpoint; the limit is "
        "config.watch.stall_minutes"
    )
    heartbeat = json.loads((tmp_path / "heartbeat" / "0.json").read_text())
    assert heartbeat["activity"] == "waiting for data"
    assert heartbeat["activity_seconds"] >= 0.5  # of 1.2

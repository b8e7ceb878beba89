"""What hangs is ended, and says so."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from trainings import DEADLINE, Training, pair_environment

pytestmark = pytest.mark.slow

LIMIT = {"watch__stall_minutes": 0.75}  # more than compilation takes on a busy machine


def test_storage_that_answers_no_more(fresh: Training, fault: Callable, check: Callable) -> None:
    with fault("input stalls") as lost:
        running = fresh.start(sabotage="make_reads_hang", **LIMIT)
        assert running.end() == 74, running.printed()
        last = running.printed().splitlines()[-1]
        assert last.startswith("error: waiting for data for 0.")
        assert "the storage of the images or masks does not answer" in last
        assert "in read_or_hang" in running.printed()  # the stack of the thread that hangs
        taken = fresh.steps_taken()
        assert f"after step {taken}: " in last
        lost.append(taken - fresh.finish())
        check(fresh)


@pytest.mark.parametrize("hanging", [0, 1])  # process 0 serves the others
def test_a_process_that_hangs_ends_the_other(hanging: int, tmp_path: Path, fault: Callable) -> None:
    script = Path(__file__).with_name("collective.py")
    with fault("one of two processes hangs (no training)") as lost, ExitStack() as stack:
        together = pair_environment()
        logs = [stack.enter_context((tmp_path / f"{i}.log").open("w")) for i in range(2)]
        pair = [
            subprocess.Popen(
                [sys.executable, str(script), str(tmp_path), "0.15"],
                env={**os.environ, "XLA_FLAGS": "", **together, "CORM_PROCESS_ID": str(index)},
                stdout=subprocess.DEVNULL,
                stderr=logs[index],
            )
            for index in range(2)
        ]
        try:
            for index in range(2):
                wait_for_step(tmp_path / "heartbeat" / f"{index}.json", 20)
            pair[hanging].send_signal(signal.SIGSTOP)
            code = pair[1 - hanging].wait(timeout=90)  # JAX itself takes 100 s
        finally:
            for process in pair:
                process.kill()
                process.communicate()
        assert code == 74
        last = (tmp_path / f"{1 - hanging}.log").read_text().splitlines()[-1]
        assert "error: waiting for a training step for 0." in last
        assert "a collective waits for it" in last
        lost.append(0)


def wait_for_step(heartbeat: Path, step: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while not heartbeat.exists() or json.loads(heartbeat.read_text()).get("step", 0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.05)

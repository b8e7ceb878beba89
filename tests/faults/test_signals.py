"""Signals that ask a run to end."""

import signal
from collections.abc import Callable

import pytest
from trainings import Training

pytestmark = pytest.mark.slow


def test_sigterm_saves_and_exits_with_75(fresh: Training, fault: Callable, check: Callable) -> None:
    """While the step is compiled, then in mid-training, where a second one changes nothing."""
    with fault("SIGTERM, one process") as lost:
        going_on = 0
        for step, signals in ((0, 1), (6, 2)):
            running = fresh.start()
            assert running.went_on_from() == going_on
            running.wait_until(lambda step=step: fresh.steps_taken() >= step)
            for _ in range(signals):
                running.send(signal.SIGTERM)
            assert running.end() == 75, running.printed()
            going_on = fresh.steps_taken()
            assert going_on > step
            assert running.printed().splitlines()[-1] == (
                f"stopped by SIGTERM; the same command goes on from step {going_on}"
            )
            assert fresh.checkpoint(going_on).exists()
            assert "Traceback" not in running.printed()
            lost.append(0)
        assert fresh.finish() == going_on
        check(fresh)


def test_sigterm_in_the_final_evaluation_exits_with_75(half: Training) -> None:
    running = half.start()
    running.wait_until(lambda: "evaluating on 48 validation images" in running.printed())
    running.send(signal.SIGTERM)
    assert running.end() == 75, running.printed()
    assert running.printed().splitlines()[-1] == "stopped by SIGTERM; the same command goes on"
    assert not (half.workdir / "results.json").exists()


def test_ctrl_c_says_how_to_go_on(half: Training) -> None:
    running = half.start()
    start = running.went_on_from()
    running.wait_until(lambda: half.steps_taken() > start)
    running.send(signal.SIGINT)
    assert running.end() == 130
    last = running.printed().splitlines()[-1]
    assert last == "stopped; the same command goes on from the last checkpoint"
    assert "Traceback" not in running.printed()

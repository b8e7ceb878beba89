"""Runs that are killed and started again end as if nothing had happened."""

import json
import time
from collections.abc import Callable

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import STEPS, Training

pytestmark = pytest.mark.slow


def test_killed_at_random_steps(fresh: Training, fault: Callable, check: Callable) -> None:
    rng = np.random.default_rng(8)
    with fault("SIGKILL at a random step, one process") as lost:
        for step in sorted(rng.choice(np.arange(1, STEPS - 2), 8, replace=False)):
            taken, running = fresh.steps_taken(), fresh.start()
            if taken:
                lost.append(taken - running.went_on_from())
            running.wait_until(lambda step=step: fresh.steps_taken() >= step)
            time.sleep(rng.uniform(0, 0.02))  # anywhere in the step
            running.kill()
        lost.append(fresh.steps_taken() - fresh.finish())
        check(fresh)


def saving(training: Training, step: int) -> bool:
    """Whether the checkpoint of a step is being written at this moment."""
    return any((training.workdir / "checkpoints").glob(f"{step}.orbax-checkpoint-tmp*"))


def test_killed_in_mid_save_and_evaluated_at_the_end(
    fresh: Training, whole: Training, fault: Callable, check: Callable
) -> None:
    with fault("SIGKILL in mid-save") as lost:
        moments: list[Callable[[], bool]] = [
            lambda: saving(fresh, 4),  # the first
            lambda: saving(fresh, 12),  # with older checkpoints beside it
            fresh.checkpoint(STEPS).exists,  # right when it appears: trained, not evaluated
        ]
        taken = 0
        for moment in moments:
            running = fresh.start()
            if taken:
                lost.append(taken - running.went_on_from())
            running.wait_until(moment)
            running.kill()
            assert not (fresh.workdir / "results.json").exists()
            taken = fresh.steps_taken()
        running = fresh.start()
        assert running.end() == 0, running.printed()
        assert f"going on from the checkpoint of step {STEPS}" in running.printed()
        lost.append(0)
        check(fresh)
        metrics = [
            json.loads((training.workdir / "results.json").read_text())["metrics"]
            for training in (whole, fresh)
        ]
        assert metrics[0] == metrics[1]

    everything = {"tensors": 0}  # not a sample of ten
    events = EventAccumulator(str(fresh.workdir / "tensorboard"), size_guidance=everything)
    events.Reload()
    assert [event.step for event in events.Tensors("train/loss")] == list(range(1, STEPS + 1))

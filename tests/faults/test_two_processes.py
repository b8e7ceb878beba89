"""Runs of two processes, one of which is lost."""

import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from trainings import STEPS, Training

pytestmark = pytest.mark.slow


def test_one_of_two_is_killed_at_random_steps(
    fresh_pair: Training, fault: Callable, check_pair: Callable
) -> None:
    """The other ends with an error, in time, and both go on from where they were."""
    rng = np.random.default_rng(9)
    with (
        fault("SIGKILL at a random step, one of two processes") as lost,
        fault("worker of two dies: the other ends with an error") as ended,
    ):
        for step in sorted(rng.choice(np.arange(1, STEPS - 2), 2, replace=False)):
            taken, pair = fresh_pair.steps_taken(), fresh_pair.start_pair()
            if taken:
                lost.append(taken - pair[0].went_on_from())
            pair[0].wait_until(lambda step=step: fresh_pair.steps_taken() >= step)
            time.sleep(rng.uniform(0, 0.02))  # anywhere in the step
            killed = int(rng.integers(2))
            pair[killed].kill()
            began = time.monotonic()
            assert pair[1 - killed].end() != 0, pair[1 - killed].printed()
            assert time.monotonic() - began < 150
            ended.append(0)
        lost.append(fresh_pair.steps_taken() - fresh_pair.finish(pair=True))
        check_pair(fresh_pair)


def test_sigterm_to_one_of_two_saves_the_same_step_and_ends_both_with_75(
    fresh_pair: Training, fault: Callable
) -> None:
    # Enough steps for the seconds that it takes until both processes know of the signal.
    changes = {"train__steps": 100_000, "checkpoint__every": 50_000}
    with fault("SIGTERM, one of two processes") as lost:
        pair = fresh_pair.start_pair(**changes)
        pair[0].wait_until(lambda: fresh_pair.steps_taken() > 0)
        for _ in range(2):
            pair[1].send(signal.SIGTERM)
        assert [running.end() for running in pair] == [75, 75], pair[0].printed()
        taken = fresh_pair.steps_taken()
        assert fresh_pair.checkpoint(taken).exists()
        said = f"stopped by SIGTERM; the same command goes on from step {taken}"
        assert said in pair[0].printed() + pair[1].printed()
        pair = fresh_pair.start_pair(**changes)
        lost.append(taken - pair[0].went_on_from())
        for running in pair:
            running.kill()
        assert lost == [0]

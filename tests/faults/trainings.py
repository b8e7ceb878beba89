"""Starts training in processes that can be ended in any way, and tells what they left behind."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from command import REPOSITORY, small_flags

from corm_jax.progress import read_history

STEPS = 16
SAVED_EVERY = 4
CONFIG = "configs/vit_corm.py:demo,noise"
CHANGES = {
    "train__steps": STEPS,
    "train__log_every": 1,
    "checkpoint__every": SAVED_EVERY,
    "eval__every": 1000,
}
DEADLINE = 1000  # seconds until something that is waited for must have happened
# What depends on the clock and on the machine.
MEASURED = (
    *("images_per_second", "data_wait", "mfu", "host_gib", "device_gib"),
    *("step_seconds", "step_seconds_p50", "step_seconds_p95", "step_seconds_max"),
)
CLOCK = {f"train/{name}" for name in MEASURED}


class Running:
    """A process of a training that has been started."""

    def __init__(
        self,
        flags: list[str],
        log: Path,
        cache: Path,
        environment: Mapping[str, str] | None = None,
        sabotage: str = "",
    ) -> None:
        """Starts the command.

        Args:
          flags: of `python -m corm_jax.main`.
          log: receives what it prints.
          cache: of compiled programs.
          environment: variables that it has beside those of this process.
          sabotage: name of a function of `sabotage.py` that is called in the process first.
        """
        self._log = log
        module = ["-m", "corm_jax.main"]
        if sabotage:
            start = f"import sabotage; sabotage.{sabotage}(); from corm_jax import main; main.run()"
            module = ["-c", start]
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, *module, *flags],
                cwd=REPOSITORY,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}",
                    "XLA_FLAGS": "",
                    "TFDS_DATA_DIR": "/nonexistent",
                    "JAX_COMPILATION_CACHE_DIR": str(cache),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                    **(environment or {}),
                },
                stdout=file,
                stderr=file,
            )

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def printed(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits, as long as the process lives."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if self._process.poll() is not None and not condition():
                raise AssertionError(f"ended early:\n{self.printed()}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"waited in vain:\n{self.printed()}")
            time.sleep(0.001)

    def end(self) -> int:
        """Waits for the end; returns the exit code, or minus the signal that ended it."""
        try:
            return self._process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end:\n{self.printed()}") from None

    def went_on_from(self) -> int:
        """Returns the step of the checkpoint that it found, 0 for none; waits until it is known."""
        known = ("compiling the training step", "evaluating on")
        self.wait_until(lambda: any(text in self.printed() for text in known))
        said = "going on from the checkpoint of step "
        lines = [line for line in self.printed().splitlines() if line.startswith(said)]
        return int(lines[0].removeprefix(said)) if lines else 0

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def pair_environment() -> dict[str, str]:
    """Returns the variables by which two processes meet, but for each one's number."""
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    return {"CORM_COORDINATOR": f"localhost:{port}", "CORM_NUM_PROCESSES": "2"}


class Training(NamedTuple):
    """A run that is started again and again; its data and compiled programs are shared."""

    workdir: Path
    data_dir: Path
    cache: Path

    def start(
        self,
        environment: Mapping[str, str] | None = None,
        sabotage: str = "",
        **changes: object,
    ) -> Running:
        """Starts the command; `environment` and `sabotage` as `Running` takes them."""
        return self._start("log", environment, sabotage, changes)

    def start_pair(self, **changes: object) -> list[Running]:
        """Starts it as two processes, which train together."""
        together = pair_environment()
        return [
            self._start(f"{i}.log", {**together, "CORM_PROCESS_ID": str(i)}, "", changes)
            for i in range(2)
        ]

    def _start(
        self,
        log: str,
        environment: Mapping[str, str] | None,
        sabotage: str,
        changes: Mapping[str, object],
    ) -> Running:
        flags = small_flags(CONFIG, self.data_dir, self.workdir, **{**CHANGES, **changes})
        return Running(
            flags, self.workdir.with_suffix(f".{log}"), self.cache, environment, sabotage
        )

    def checkpoint(self, step: int) -> Path:
        return self.workdir / "checkpoints" / str(step)

    def history(self) -> list[dict[str, float]]:
        """Returns what is logged so far, without what depends on the clock."""
        records = read_history(self.workdir / "history.jsonl")
        return [{k: v for k, v in record.items() if k not in CLOCK} for record in records]

    def steps_taken(self) -> int:
        return max((int(record["step"]) for record in self.history()), default=0)

    def finish(self, pair: bool = False, **changes: object) -> int:
        """Starts it, and ends it once it is trained; returns the step that it went on from."""
        processes = self.start_pair(**changes) if pair else [self.start(**changes)]
        start = processes[0].went_on_from()
        processes[0].wait_until(self.checkpoint(STEPS).exists)
        for running in processes:
            running.kill()
        return start

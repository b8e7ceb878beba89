"""Watches over a run from threads of its own: a heartbeat on disk, an end to what hangs."""

import contextlib
import datetime
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax

from corm_jax import distributed
from corm_jax.buckets import is_remote
from corm_jax.errors import UserError
from corm_jax.files import write_json

T = TypeVar("T")

EXIT_CODE = os.EX_IOERR  # 74, of a run that hung
HEARTBEAT_SECONDS = 15.0  # at most, between two heartbeats


class Activity(NamedTuple):
    """What a process does, and why that may never end."""

    name: str
    cause: str


FILES = Activity("reading or writing files", "the storage of the workdir does not answer")
COMPILE = Activity("compiling the training step", "the compiler hangs, or just takes longer")
DATA = Activity("waiting for data", "the storage of the images or masks does not answer")
STEP = Activity(
    "waiting for a training step",
    "a device hangs, or another process of the run does and a collective waits for it",
)
EVALUATE = Activity("waiting for a batch's evaluation", STEP.cause)
SAVE = Activity("saving a checkpoint", FILES.cause)


class Watch:
    """What a process of a run is doing, for others to see.

    While it is `running`, it writes `heartbeat/<process>.json` into the workdir: after each log
    (not into a bucket) and at least every `HEARTBEAT_SECONDS`. A file that is older means that the
    process is gone, or stopped as a whole. One activity that takes longer than the limit ends the
    process: with a message, the stack of each thread on stderr, and `EXIT_CODE`.
    """

    def __init__(self, workdir: Path, stall_minutes: float) -> None:
        """Starts with `FILES`; writes and ends nothing yet.

        Args:
          workdir: of the run.
          stall_minutes: the limit; 0 for none.
        """
        self._path = workdir / "heartbeat" / f"{jax.process_index()}.json"
        self._limit = 60 * stall_minutes
        self._now = (FILES, time.monotonic())  # replaced as a whole: two threads see it
        self._logged: dict[str, float] = {}
        self._interval = min(HEARTBEAT_SECONDS, self._limit / 4 or HEARTBEAT_SECONDS)
        self._news, self._over = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watches as long as the block runs."""
        self._enter(self._now[0])
        # Two threads: the heartbeat's hangs itself where the workdir's storage does.
        beat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        beat.start()
        if self._limit:
            threading.Thread(target=self._guard, name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._over.set()
            self._news.set()
            beat.join(HEARTBEAT_SECONDS)

    @contextlib.contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """Is doing `activity` in the block, and afterwards what it did before."""
        before = self._now[0]
        self._enter(activity)
        try:
            yield
        finally:
            self._enter(before)

    def batches(self, batches: Iterator[T], then: Activity) -> Iterator[T]:
        """Yields from `batches`: doing `DATA` until there is one, `then` until the next is due."""
        self._enter(DATA)
        for batch in batches:
            self._enter(then)
            yield batch
            self._enter(DATA)

    def logged(self, step: int, scalars: dict[str, float]) -> None:
        """Puts what is known after a step into the heartbeat, at once."""
        self._logged = {"step": step, **scalars}
        self._news.set()

    def _enter(self, activity: Activity) -> None:
        self._now = (activity, time.monotonic())

    def _beat(self) -> None:
        while True:
            over = self._over.is_set()  # before the last one
            # A disk that is full or gone is for the run itself to report.
            with contextlib.suppress(UserError):
                write_json(self._path, self._heartbeat())
            if over:
                return
            # One object takes one write a second, and steps may be logged faster.
            (self._over if is_remote(self._path) else self._news).wait(self._interval)
            self._news.clear()

    def _guard(self) -> None:
        while not self._over.wait(self._interval):
            activity, since = self._now
            seconds = time.monotonic() - since
            if seconds > self._limit:
                self._end(activity, seconds)

    def _heartbeat(self) -> dict[str, object]:
        activity, since = self._now
        return {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "activity": activity.name,
            "activity_seconds": round(time.monotonic() - since, 1),
            **self._logged,
        }

    def _end(self, activity: Activity, seconds: float) -> None:
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        step = f" after step {self._logged['step']}" if self._logged else ""
        distributed.end(
            f"error: {activity.name} for {seconds / 60:.1f} minutes{step}: {activity.cause}. The "
            "same command goes on from the last checkpoint; the limit is "
            "config.watch.stall_minutes",
            EXIT_CODE,
        )

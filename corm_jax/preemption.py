"""SIGTERM, which launchers and machines that are taken away send: save, then ask for a restart."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

# What sysexits.h calls a temporary failure: launchers start the same command again on it.
EXIT_CODE = os.EX_TEMPFAIL


class Preempted(BaseException):
    """SIGTERM ended the run; the same command goes on with it.

    Like KeyboardInterrupt no Exception: no library that retries or reports may take it for one.
    """


class Preemption:
    """Whether this process has been told to end. One that is not installed never is.

    In a run of several processes JAX's own handler stands in the place of this one, and whoever
    gets the signal, all processes learn of it at the same step.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self._received = False
        self._deferred = False

    def install(self) -> None:
        """Handles SIGTERM from now on; call in the main thread."""
        if not jax.distributed.is_initialized():  # else JAX handles it already
            signal.signal(signal.SIGTERM, self._handle)

    def reached(self, step: int) -> bool:
        """Returns whether to save and end now; call once after every step, in every process.

        Args:
          step: number of steps taken.
        """
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal waits for `reached`, or for the end of the block.

        Raises:
          Preempted: at the end, if there was a signal.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._received:
            raise Preempted("stopped by SIGTERM; the same command goes on")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        again, self._received = self._received, True
        if not (again or self._deferred):
            raise Preempted("stopped by SIGTERM; the same command goes on")

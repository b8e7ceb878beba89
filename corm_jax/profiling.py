"""A profile of some training steps, on request."""

import re
from pathlib import Path
from typing import Any

import jax

from corm_jax.buckets import Mirror
from corm_jax.errors import UserError


def parse_steps(text: str) -> tuple[int, int] | None:
    """Returns the first and the last step of "FIRST:LAST", None for "".

    Raises:
      UserError: for anything else.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= steps[0] <= steps[1]:
        raise UserError(
            f"config.profile.steps={text!r} must be FIRST:LAST, such as 10:15 for steps 10 to 15"
        )
    return steps


class Profile:
    """Writes a trace of a range of steps, for TensorBoard's profile plugin (xprof) or Perfetto."""

    def __init__(self, directory: Path, steps: tuple[int, int] | None) -> None:
        """Plans it.

        Args:
          directory: receives the trace.
          steps: the first and the last, None for no profile.
        """
        self._directory, self._steps = directory, steps
        self._trace: Mirror | None = None  # that is being written

    def before(self, step: int, state: Any) -> None:
        """Starts or ends the trace as it is due; call before every step.

        Args:
          step: the number of the step to come, from 1 on.
          state: what the steps before give; a trace ends when it is there.
        """
        due = self._steps is not None and self._steps[0] <= step <= self._steps[1]
        if due and self._trace is None:
            self._trace = Mirror(self._directory)
            jax.profiler.start_trace(str(self._trace.local))
        elif self._trace is not None and not due:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends a trace that is not ended yet."""
        if self._trace is not None:
            trace, self._trace = self._trace, None
            jax.profiler.stop_trace()
            trace.close()

"""What a user sees of a running training: a progress line, TensorBoard, a history on disk."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from clu import metric_writers

from corm_jax.buckets import Mirror, remove_tree
from corm_jax.errors import UserError
from corm_jax.files import replacing, reporting
from corm_jax.meter import Reading

logger = logging.getLogger(__name__)


class History:
    """The metrics of a run by step: `history.jsonl` and TensorBoard events in the workdir."""

    def __init__(self, workdir: Path, *, start: int) -> None:
        """Opens the history; what an interrupted run wrote beyond step `start` is dropped.

        TensorBoard's events are written anew from it: a killed run's may lack the last ones, and
        hold those of steps that are taken again.

        Of a workdir in a bucket the files are on disk, and `publish` copies them.
        """
        self.records = [r for r in read_history(workdir / "history.jsonl") if r["step"] <= start]
        remove_tree(workdir / "tensorboard")
        self._mirror = Mirror(workdir)
        self._path = self._mirror.local / "history.jsonl"
        with replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in self.records))
        self._file = self._path.open("a")
        self._writer = metric_writers.SummaryWriter(str(self._mirror.local / "tensorboard"))
        for record in self.records:
            self._writer.write_scalars(
                record["step"], {name: v for name, v in record.items() if name != "step"}
            )

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends metrics of a step.

        Raises:
          UserError: if the operating system refuses the write.
        """
        record = {"step": step, **metrics}
        self.records.append(record)
        with reporting(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self._writer.write_scalars(step, metrics)
        self._writer.flush()
        try:
            self._mirror.publish(soon=False)
        except UserError as error:
            # Until a checkpoint is saved nothing depends on it.
            logger.warning("%s; it is tried again later", error)

    def publish(self) -> None:
        """Copies all to the bucket, if the workdir is in one; call before a checkpoint is saved.

        What a checkpoint counts as past must be there when another process goes on from it.

        Raises:
          UserError: if the bucket cannot be written.
        """
        self._mirror.publish()

    def close(self) -> None:
        """Flushes and closes both files."""
        self._file.close()
        self._writer.close()
        self._mirror.close()


class NoHistory:
    """The history in a process that does not write it."""

    records: tuple[dict[str, Any], ...] = ()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes nothing."""

    def publish(self) -> None:
        """Has nothing to copy."""

    def close(self) -> None:
        """Has nothing to close."""


def read_history(path: Path) -> list[dict[str, Any]]:
    """Reads a history; a last line that was cut off by a crash is left out."""
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class ProgressLine:
    """One line with step, loss, images/s, share of time waiting for data, and time to go.

    On a terminal it is rewritten in place; in a log file each is a line of its own.
    """

    def __init__(self, total: int, stream: TextIO = sys.stderr, *, shown: bool = True) -> None:
        """Starts the clock for `total` steps; prints nothing unless `shown`."""
        self._total, self._stream, self._shown = total, stream, shown
        self._terminal = stream.isatty()
        self._drawn = False

    def show(self, step: int, loss: float, measured: Reading) -> None:
        """Shows the state after `step` steps, and what the last ones took."""
        scalars = measured.scalars
        rest = time.gmtime((self._total - step) * scalars["step_seconds"])
        days = f"{rest.tm_yday - 1}d " if rest.tm_yday > 1 else ""
        line = (
            f"step {step:>{len(str(self._total))}}/{self._total}  loss {loss:.4f}  "
            f"{scalars['images_per_second']:.0f} images/s  data wait {scalars['data_wait']:.0%}  "
            f"ETA {days}{time.strftime('%H:%M:%S', rest)}"
        )
        if not self._shown:
            return
        if self._terminal:
            self._stream.write(f"\r{line}\x1b[K")
            self._drawn = True
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """Prints a line of its own."""
        if not self._shown:
            return
        self.finish()
        self._stream.write(text + "\n")
        self._stream.flush()

    def finish(self) -> None:
        """Ends the line on a terminal."""
        if self._drawn:
            self._stream.write("\n")
            self._drawn = False


class SilentTerms:
    """Finds terms whose gradient is exactly zero at `LIMIT` logged steps in a row.

    Steps at which a schedule has the term's weight at 0 (the logged `weight`) do not count.
    """

    LIMIT = 3
    MEANING = (
        f"had a gradient of zero at the last {LIMIT} logged steps: it does not train the model. "
        "Is its weight 0, do no images have masks, or do masks cover them whole?"
    )

    def __init__(self) -> None:
        """Starts counting."""
        self._counts: dict[str, int] = {}

    def update(self, metrics: dict[str, float]) -> list[str]:
        """Takes a logged step's metrics; returns the labels that reach the limit with it."""
        reached = []
        for name, value in metrics.items():
            if name.startswith("terms/") and name.endswith("/gradient_norm"):
                label = name.split("/")[1]
                off = metrics.get(f"terms/{label}/weight") == 0
                zero = value == 0 and not off
                self._counts[label] = self._counts.get(label, 0) + 1 if zero else 0
                if self._counts[label] == self.LIMIT:
                    reached.append(label)
        return reached

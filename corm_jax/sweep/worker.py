"""One process for each training of a sweep.

A process of its own costs some seconds of imports a run; in exchange memory never grows, a run
that the operating system kills takes no other one with it, and each has its own CPU cores.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from corm_jax.errors import UserError, one_line
from corm_jax.files import locked, reporting
from corm_jax.terminal import set_up_terminal

if TYPE_CHECKING:
    from corm_jax.sweep.config import Run

# jax and tensorflow are imported by the process that trains, after it has its CPU cores.


class _Active(NamedTuple):
    process: BaseProcess
    run: "Run"
    receiver: Connection
    slot: int


def run_all(runs: Sequence["Run"], jobs: int) -> Iterator[tuple["Run", str]]:
    """Trains, `jobs` at a time, and yields (run, "" or what went wrong in one line) as each ends.

    Closing the iterator ends the processes; so does this process's end, however it comes.

    Args:
      runs: in the order in which they begin.
      jobs: processes at once; if there are enough CPU cores each has an equal share for itself.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy jax's threads half-way
    waiting, free = deque(runs), list(range(jobs))
    active: dict[int, _Active] = {}
    try:
        while waiting or active:
            while waiting and free:
                run, slot = waiting.popleft(), free.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                arguments = (run.config.to_dict(), str(run.workdir), _cores(slot, jobs), sender)
                process = context.Process(target=_work, args=arguments)
                process.start()
                sender.close()
                active[process.sentinel] = _Active(process, run, receiver, slot)
            for sentinel in wait(list(active)):
                ended = active.pop(sentinel)
                free.append(ended.slot)
                ended.process.join()
                yield ended.run, _error(ended)
    finally:
        for left in active.values():
            left.process.kill()
            left.process.join()


def _cores(slot: int, jobs: int) -> list[int]:
    """Returns the CPU cores of a slot; [] leaves them to the operating system."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores[slot::jobs] if jobs <= len(cores) else []


def _error(ended: _Active) -> str:
    code = ended.process.exitcode
    if not code:
        return ""
    try:
        return ended.receiver.recv()
    except EOFError:
        what = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return f"the process {what}; see {ended.run.workdir}/log.txt"


def _work(config: dict[str, Any], workdir: str, cores: list[int], sender: Connection) -> None:
    """Trains in this process, which has nothing else to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the sweep, which ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cores:
        os.sched_setaffinity(0, cores)
    failed = False
    try:
        _log_to(Path(workdir) / "log.txt")
        set_up_terminal()
        from ml_collections import ConfigDict

        from corm_jax.train import train

        # What another sweep, or the end of a killed one, still does here comes first.
        with locked(Path(workdir) / ".lock"):
            train(ConfigDict(config), Path(workdir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sender.send(one_line(error))
        failed = True
    gc.collect()  # ends the data loader, which the error's traceback kept alive
    sys.exit(failed)


def _end_with_parent() -> None:
    """Waits for the end of the sweep's process, which could not end this one, and follows it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _log_to(path: Path) -> None:
    """Sends what this process prints, its libraries included, to the end of a file."""
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.close(file)

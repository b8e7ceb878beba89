"""Several processes as one run: how they meet, wait for each other, and end together."""

import atexit
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # jax keeps its client nowhere public
from jax.experimental import multihost_utils

from corm_jax.errors import UserError, one_line
from corm_jax.preemption import EXIT_CODE, Preempted
from corm_jax.terminal import hide_native_stdout

VARIABLES = ("CORM_COORDINATOR", "CORM_NUM_PROCESSES", "CORM_PROCESS_ID")
END_KEY = "corm_jax/end"
CONNECT_SECONDS = 300.0  # at most, that a process waits for the first one's address to answer
WATCH_SECONDS = 1.0  # between looks for the error of another process
GRACE_SECONDS = 5.0  # between the error of one process and the end of the others
LEAVE_SECONDS = 15.0  # at most, that processes which end wait for the others' ends
PREPARE_SECONDS = 3600.0  # at most, that processes wait for the first one's preparation


def start_from_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the processes that CORM_COORDINATOR and its companions describe; without them alone.

    Args:
      environment: CORM_COORDINATOR is host:port of process 0, CORM_NUM_PROCESSES how many there
        are, CORM_PROCESS_ID this one's number from 0 on.

    Raises:
      UserError: if the variables are incomplete or wrong, or the others cannot be reached.
    """
    given = {name: environment[name] for name in VARIABLES if environment.get(name)}
    if not given:
        return
    missing = [name for name in VARIABLES if name not in given]
    if missing:
        raise UserError(f"{missing[0]} is not set, {next(iter(given))} is; set all or none")
    coordinator = given["CORM_COORDINATOR"]
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"CORM_COORDINATOR={coordinator} must be host:port of process 0")
    for name in VARIABLES[1:]:
        if not given[name].isdigit():
            raise UserError(f"{name}={given[name]} must be a number")
    count, index = (int(given[name]) for name in VARIABLES[1:])
    if index >= count:
        raise UserError(f"CORM_PROCESS_ID={index} must be below CORM_NUM_PROCESSES={count}")
    if index:
        _wait_for(coordinator)
    _join(
        f"CORM_COORDINATOR={coordinator}",
        coordinator_address=coordinator,
        num_processes=count,
        process_id=index,
        cluster_detection_method="deactivate",
    )


def _wait_for(coordinator: str) -> None:
    """Waits until process 0 listens: jax aborts, where nobody does, with a trace of its own."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"CORM_COORDINATOR={coordinator} cannot be reached ({error.strerror or error}) "
                    f"in {CONNECT_SECONDS:.0f} s; start the process of CORM_PROCESS_ID=0 there, or "
                    "correct the address"
                ) from error
        time.sleep(0.2)


def start_from_cluster() -> None:
    """Joins the other processes of a TPU pod, SLURM job, Kubernetes job or MPI run.

    What jax.distributed.initialize knows of; nothing if `start_from_environment` joined some.

    Raises:
      UserError: if this process runs in none of them, or the others cannot be reached.
    """
    if not jax.distributed.is_initialized():
        _join("--distributed")


def _join(how: str, **arguments: Any) -> None:
    try:
        # Whatever the platform's own way, processes on CPUs exchange arrays by gloo.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        reason = one_line(error, 300)
        raise UserError(
            f"{how}: the processes of this run did not find each other ({reason}); start all of "
            "them, or set CORM_COORDINATOR, CORM_NUM_PROCESSES and CORM_PROCESS_ID"
        ) from error
    if jax.default_backend() == "cpu":
        hide_native_stdout()
    watch = threading.Thread(target=_end_with_others, name="end_with_others", daemon=True)
    watch.start()
    atexit.register(_stop, watch)


def is_first() -> bool:
    """Returns whether this process writes the run's files and tells its progress."""
    return jax.process_index() == 0


def let_first_speak() -> None:
    """Leaves messages to the first process; a warning may be of what another one alone sees."""
    if not is_first():
        logging.getLogger("corm_jax").setLevel(logging.WARNING)


@contextlib.contextmanager
def first_alone(what: str) -> Iterator[None]:
    """Runs the block in the first process alone, afterwards in the others.

    Args:
      what: names the block, each of a run by another name.
    """
    client, first = _client(), is_first()
    if client and not first:
        client.wait_at_barrier(f"corm_jax/{what}", int(PREPARE_SECONDS * 1000))
    yield
    if client and first:
        client.wait_at_barrier(f"corm_jax/{what}", int(PREPARE_SECONDS * 1000))


def merge(found: dict[str, str]) -> dict[str, str]:
    """Returns the entries of all processes; every process calls it at the same point."""
    if jax.process_count() == 1:
        return found
    encoded = np.frombuffer(json.dumps(found).encode(), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.array(len(encoded), np.int32)))
    padded = np.pad(encoded, (0, int(sizes.max()) - len(encoded)))
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    merged: dict[str, str] = {}
    for row, size in zip(rows, sizes, strict=True):
        merged |= json.loads(bytes(row[:size]))
    return merged


class EndingTogether:
    """A context whose error in one process ends all processes of the run.

    Errors pass unchanged where there is one process. Where there are several, each leaves with
    the exit code that a lone process would have, and an error that several of them meet is told
    once. Exits pass: every process decides on these for itself.
    """

    def __enter__(self) -> None:
        """Does nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Ends the process where there are others; see the class."""
        if _client() is None:
            return False
        if error is None or isinstance(error, SystemExit):
            if error is None or not error.code:
                # Still watched: an error of another, which is not done, ends this one as well.
                _client().wait_at_barrier("corm_jax/done", int(PREPARE_SECONDS * 1000))
            return False
        if isinstance(error, UserError):
            end(f"error: {error}", 1)
        if isinstance(error, Preempted):
            end(str(error), EXIT_CODE)
        if isinstance(error, KeyboardInterrupt):
            end("stopped; the same command goes on from the last checkpoint", 130)
        end("".join(traceback.format_exception(error)).rstrip(), 1)


def _client() -> Any:
    """Returns jax's client of the coordination service, None where a process is alone."""
    return jax_distributed.global_state.client


def end(text: str, code: int) -> NoReturn:
    """Ends this process at once, and with it all others of the run; from any thread.

    Args:
      text: printed to stderr, unless another process has already.
      code: to exit with.
    """
    client, news = _client(), f"{code} {text}"
    if client is None:
        _say(text)
        _exit(code)
    said = threading.Event()

    def leave_alone() -> None:
        if not said.is_set():
            _say(text)
        _exit(code)

    # Where the first process hangs, no call of its service returns.
    last_resort = threading.Timer(2 * LEAVE_SECONDS, leave_alone)
    last_resort.daemon = True
    last_resort.start()
    if _leaving.locked():
        told = True  # an error met only now comes of the others' ends: an exchange that broke
    else:
        try:
            client.key_value_set(END_KEY, news)  # refused where there is one
            told = False
        except jax.errors.JaxRuntimeError:
            told = _told(client) == news
    if not told:
        _say(text)
    said.set()
    _leave(code)


def _say(text: str) -> None:
    index = jax_distributed.global_state.process_id
    print(f"process {index}: {text}" if index else text, file=sys.stderr, flush=True)


def _told(client: Any) -> str | None:
    try:
        return client.key_value_try_get(END_KEY)
    except jax.errors.JaxRuntimeError:
        return None  # the first process is gone, and the service with it


_over = threading.Event()


def _end_with_others() -> None:
    """Looks, in a thread of its own, for the error of another process, and ends this one."""
    client = _client()
    while not _over.wait(WATCH_SECONDS):
        try:
            news = client.key_value_try_get(END_KEY)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # a death of the first process is jax's to notice
        time.sleep(GRACE_SECONDS)  # this process may meet an error of its own, such as the same
        _leave(int(news.split()[0]))


def _stop(watch: threading.Thread) -> None:
    """Ends the thread: one in jax's client when the interpreter goes would abort the process."""
    _over.set()
    watch.join()


_leaving = threading.Lock()


def _leave(code: int) -> NoReturn:
    """Ends this process together with the others, whatever its other threads wait for."""
    with _leaving:  # never released: one thread leaves
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().wait_at_barrier("corm_jax/leave", int(LEAVE_SECONDS * 1000))
        if jax_distributed.global_state.process_id == 0:
            time.sleep(0.5)  # its end is that of the service, which others would complain of
        _exit(code)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""Starts the command line as several processes of one run, on this machine."""

import socket
import subprocess
from collections.abc import Sequence

from command import start


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def environments(count: int) -> list[dict[str, str]]:
    """Returns what makes each of `count` processes one of a run."""
    port = free_port()
    return [
        {
            "CORM_COORDINATOR": f"localhost:{port}",
            "CORM_NUM_PROCESSES": str(count),
            "CORM_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]


def start_all(commands: Sequence[Sequence[str]], devices: int = 1) -> list[subprocess.Popen[str]]:
    """Starts one process, with some fake devices, for each of the commands' flags."""
    fake = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return [
        start(flags, **variables, **fake)
        for flags, variables in zip(commands, environments(len(commands)), strict=True)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Returns (exit code, stdout, stderr) of each."""
    ended = [(process, *process.communicate(timeout=900)) for process in processes]
    return [(process.returncode, output, errors) for process, output, errors in ended]

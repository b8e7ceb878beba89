"""Starts the command line as several processes of one run, on this machine."""

import socket
import subprocess
from collections.abc import Sequence

from command import start


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def environments(count: int, devices: int) -> list[dict[str, str]]:
    """Returns the environment of each of `count` processes with `devices` fake devices."""
    port = free_port()
    return [
        {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "CORM_COORDINATOR": f"localhost:{port}",
            "CORM_NUM_PROCESSES": str(count),
            "CORM_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]


def start_all(commands: Sequence[Sequence[str]], devices: int = 1) -> list[subprocess.Popen[str]]:
    """Starts one process for each of the commands' flags."""
    return [
        start(flags, **variables)
        for flags, variables in zip(commands, environments(len(commands), devices), strict=True)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Returns (exit code, stdout, stderr) of each."""
    ended = [(process, *process.communicate(timeout=300)) for process in processes]
    return [(process.returncode, output, errors) for process, output, errors in ended]

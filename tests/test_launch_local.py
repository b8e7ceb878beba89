"""launch/local_multiprocess.sh: real processes of a stand-in for the training program."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import AWKWARD, CONFIG, LAUNCH, Machine, printed_commands, refused

SCRIPT = "local_multiprocess.sh"
# `env` is a program of its own, so that a test sees the variables that it is given.
ENV = 'import os, sys; os.execv("/usr/bin/env", ["env", *sys.argv[1:]])'
WAITS = """\
import os, pathlib, signal, sys, time
me = os.environ["CORM_PROCESS_ID"]
def note(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    if os.environ.get("STUBBORN") != me:
        time.sleep(0.5)
        sys.exit({"SIGINT": 130, "SIGTERM": 75}[signal.Signals(number).name])
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
if os.environ.get("FAILS") == me:
    time.sleep(0.3)
    sys.exit(3)
print("waits", flush=True)
end = time.time() + 30
while time.time() < end:
    time.sleep(0.05)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def start(machine: Machine, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Starts the launcher in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        ["/usr/bin/env", "--default-signal=INT", str(LAUNCH / SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=machine.environment(**variables),
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], lines: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(lines)]


def test_processes_get_their_environment_and_every_flag_as_it_was_given(machine: Machine) -> None:
    machine.add("env", ENV)
    machine.add(
        "python",
        "import os, sys\n"
        "print('out', os.environ['CORM_PROCESS_ID'])\n"
        "print('err', os.environ['XLA_FLAGS'], file=sys.stderr)\n",
    )
    arguments = ("--processes=2", "--devices=4", "--port=23456", "--", *AWKWARD)
    result = machine.run(SCRIPT, *arguments, XLA_FLAGS="--xla_a=1")
    assert result.returncode == 0, result
    devices = "--xla_force_host_platform_device_count=4"
    expected = [
        [
            "env",
            f"XLA_FLAGS=--xla_a=1 {devices}",
            "JAX_PLATFORMS=cpu",
            "PYTHONUNBUFFERED=1",
            "CORM_COORDINATOR=localhost:23456",
            "CORM_NUM_PROCESSES=2",
            f"CORM_PROCESS_ID={process}",
            "python",
            "-m",
            "corm_jax.main",
            *AWKWARD,
        ]
        for process in range(2)
    ]
    assert sorted(machine.calls("env")) == expected
    assert machine.calls("python") == [["python", "-m", "corm_jax.main", *AWKWARD]] * 2
    assert sorted(result.stdout.splitlines()) == [
        f"[0] err --xla_a=1 {devices}",
        "[0] out 0",
        f"[1] err --xla_a=1 {devices}",
        "[1] out 1",
    ]
    assert not (machine.home / "hacked").exists()

    before = len(machine.calls())
    printed = machine.run(SCRIPT, "--dry-run", *arguments, XLA_FLAGS="--xla_a=1")
    assert printed_commands(printed.stdout) == expected
    assert len(machine.calls()) == before


def test_another_module_takes_its_own_arguments(machine: Machine) -> None:
    machine.add("python")
    arguments = ("--module=corm_jax.evaluate", "--processes=1", "--", "runs/demo/x", "--trials=3")
    called = ["python", "-m", "corm_jax.evaluate", "runs/demo/x", "--trials=3"]
    (printed,) = printed_commands(machine.run(SCRIPT, "--dry-run", *arguments).stdout)
    assert printed[-len(called) :] == called
    assert machine.calls() == []
    assert machine.run(SCRIPT, *arguments).returncode == 0
    assert machine.calls("python") == [called]


def test_coordinator_is_one_free_port(machine: Machine) -> None:
    machine.add("python", "import os; print(os.environ['CORM_COORDINATOR'])")
    result = machine.run(SCRIPT, "--processes=3", "--", CONFIG)
    ports = {line.split("localhost:")[1] for line in result.stdout.splitlines()}
    assert len(ports) == 1
    assert 20000 <= int(ports.pop()) < 32000


def test_failure_of_one_stops_all_and_gives_its_code(machine: Machine) -> None:
    machine.add("python", WAITS)
    started = time.monotonic()
    result = machine.run(SCRIPT, "--processes=3", "--", CONFIG, FAILS="1")
    assert result.returncode == 3
    assert time.monotonic() - started < 25
    assert "process 1 ended with code 3" in result.stderr
    assert sorted(line for line in result.stdout.splitlines() if "got" in line) == [
        "[0] got SIGTERM",
        "[2] got SIGTERM",
    ]


def test_what_does_not_stop_in_time_is_killed(machine: Machine) -> None:
    machine.add("python", WAITS)
    result = machine.run(SCRIPT, "--grace=1", "--", CONFIG, FAILS="1", STUBBORN="0")
    assert result.returncode == 3
    assert [line for line in result.stderr.splitlines() if line.startswith("== ")] == [
        "== process 1 ended with code 3",
        "== killed after 1 seconds, still running: 1",
        "== process 0 ended with code 137",
    ]


def test_sigterm_reaches_every_process_and_nothing_is_restarted(machine: Machine) -> None:
    machine.add("python", WAITS)
    process = start(machine, "--processes=2", "--max-restarts=5", "--", CONFIG)
    read_until(process, 2)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 75, errors
    assert sorted(output.splitlines()) == ["[0] got SIGTERM", "[1] got SIGTERM"]
    assert "stopped; the same command goes on" in errors
    assert len(machine.calls("python")) == 2


def test_ctrl_c_reaches_every_process_once(machine: Machine) -> None:
    machine.add("python", WAITS)
    process = start(machine, "--processes=2", "--", CONFIG)
    read_until(process, 2)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    output, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert sorted(output.splitlines()) == ["[0] got SIGINT", "[1] got SIGINT"]


@pytest.mark.parametrize(("code", "starts"), [(75, 3), (1, 1)])
def test_restarts_after_preemption_but_not_after_an_error(
    machine: Machine, code: int, starts: int
) -> None:
    machine.add("python", f"import sys; sys.exit({code})")
    result = machine.run(SCRIPT, "--processes=1", "--max-restarts=2", "--", CONFIG)
    assert result.returncode == code
    assert len(machine.calls("python")) == starts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "name a config after --"),
        (["--processes=0", "--", CONFIG], "--processes must be a whole number from 1, not '0'"),
        (["--port=x", "--", CONFIG], "--port must be a whole number from 0, not 'x'"),
        (["--proceses=2", "--", CONFIG], "unknown option --proceses=2"),
        (["--processes", "2", "--", CONFIG], "--processes needs a value: --processes=VALUE"),
        (["--$(touch hacked)=1", "--", CONFIG], "unknown option --$(touch hacked)=1"),
        ([CONFIG], "unknown option --config="),
        (["2", "--", CONFIG], "unexpected argument '2'"),
        (["--module=corm_jax.data", "--", CONFIG], "--module must be one of: corm_jax.main corm_"),
        (["--", CONFIG, "gs://bucket/run"], "a flag is gs://bucket/run"),
        (["--module=corm_jax.evaluate", "--", "s3://bucket/run"], "a flag is s3://bucket/run"),
        (["--", "--config=configs/none.py:demo"], "config file configs/none.py is not in"),
    ],
)
def test_refusals(machine: Machine, arguments: list[str], message: str) -> None:
    machine.add("python")
    assert message in refused(machine.run(SCRIPT, *arguments))
    assert machine.calls() == []
    assert not (machine.home / "hacked").exists()


def test_refuses_a_missing_interpreter(machine: Machine) -> None:
    message = refused(machine.run(SCRIPT, "--", CONFIG, PYTHON="python9"))
    assert "python9 is not installed here" in message


def test_options_from_the_environment(machine: Machine) -> None:
    machine.add("python")
    result = machine.run(SCRIPT, "--", CONFIG, LAUNCH_PROCESSES="3")
    assert result.returncode == 0
    assert len(machine.calls("python")) == 3


def test_jax_sees_the_devices_of_all_processes(machine: Machine, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, jax\n"
        "jax.distributed.initialize(os.environ['CORM_COORDINATOR'],\n"
        "    int(os.environ['CORM_NUM_PROCESSES']), int(os.environ['CORM_PROCESS_ID']))\n"
        "print(jax.process_index(), jax.local_device_count(), jax.device_count())\n"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}"\n')
    python.chmod(0o755)
    result = machine.run(
        SCRIPT, "--processes=2", "--devices=2", "--", CONFIG, PYTHON=str(python), XLA_FLAGS=""
    )
    assert result.returncode == 0, result
    lines = [line for line in result.stdout.splitlines() if line.endswith("2 4")]
    assert sorted(lines) == ["[0] 0 2 4", "[1] 1 2 4"]

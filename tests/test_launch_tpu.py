"""launch/tpu_vm.sh, tpu_queued.sh: runs against a fake gcloud whose hosts run real shells."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from launching import AWKWARD, CONFIG, printed_commands, refused
from launching_tpu import PLACE, QUEUED, UP, VM, WORKDIR, Cloud


def test_slice_is_created_and_runs_every_flag_as_it_was_given(cloud: Cloud) -> None:
    cloud.set(hosts=2)
    flags = [*AWKWARD, WORKDIR]
    options = [*PLACE, "--delete=success", "--create-flag=--network=a b", "--connect-flag=--plain"]
    result = cloud.run(VM, *options, "--", *flags)
    assert result.returncode == 0, result.stderr
    assert cloud.changes() == ["tpu-vm create", *UP, "tpu-vm delete"]
    assert cloud.runs() == [flags, flags]
    assert "trains in" in result.stdout
    assert not list(cloud.path.rglob("hacked"))
    create = next(call for call in cloud.calls("gcloud") if "create" in call)
    place = ["--zone=us-central2-b", "--project=some-project"]
    assert create[5:] == [
        "corm",
        *place,
        "--accelerator-type=v4-8",
        "--version=tpu-ubuntu2204-base",
        "--network=a b",
    ]
    assert cloud.world["slices"] == {}


@pytest.mark.parametrize("script", [VM, QUEUED])
def test_dry_run_prints_what_is_run(cloud: Cloud, checkout: Path, script: str) -> None:
    arguments = [*PLACE, "--delete=success", "--spot", "--", *AWKWARD, WORKDIR]
    printed = cloud.run(script, "--dry-run", *arguments)
    assert printed.returncode == 0, printed
    assert cloud.calls() == []
    result = cloud.run(script, *arguments)
    assert result.returncode == 0, result.stderr
    executed = [shlex.split(line[2:]) for line in result.stderr.splitlines() if line[:2] == "+ "]
    commands = printed_commands(printed.stdout)
    assert [command for command in commands if command[0] == "gcloud"] == cloud.calls("gcloud")
    assert [command for command in commands if command in executed] == executed
    assert not list((checkout / ".git").glob("launch-*"))


def test_upload_is_the_last_commit_and_a_second_start_keeps_the_environment(
    cloud: Cloud, checkout: Path
) -> None:
    cloud.set()
    (checkout / "untracked.py").touch()
    assert cloud.run(VM, *PLACE, "--", CONFIG).returncode == 0
    code = cloud.root / "corm" / "host0" / "corm_jax"
    assert (code / "configs" / "vit_corm.py").exists()
    assert not (code / "untracked.py").exists()
    (code / "stale.py").touch()
    result = cloud.run(VM, *PLACE, "--", CONFIG)
    assert result.returncode == 0
    assert "installed already" in result.stdout
    assert not (code / "stale.py").exists()
    assert cloud.changes() == ["tpu-vm create", *UP, *UP]
    installs = [call for call in cloud.calls("train") if "pip" in call]
    assert [call[-1] for call in installs] == [".[tpu,gcs]"]


def test_slice_stays_unless_asked_and_says_what_deletes_it(cloud: Cloud) -> None:
    cloud.set()
    result = cloud.run(VM, *PLACE, "--", CONFIG)
    hint = result.stderr.splitlines()[-1].split("costs until: ")[1]
    assert "corm" in cloud.world["slices"]
    subprocess.run(hint, shell=True, check=True, env=cloud.environment())
    assert cloud.world["slices"] == {}


@pytest.mark.parametrize(
    ("delete", "code", "deleted"), [("success", 3, False), ("always", 3, True)]
)
def test_deletion_at_the_end(cloud: Cloud, delete: str, code: int, deleted: bool) -> None:
    cloud.set(codes=str(code))
    result = cloud.run(VM, *PLACE, f"--delete={delete}", "--", CONFIG, WORKDIR)
    assert result.returncode == code
    assert ("tpu-vm delete" in cloud.changes()) == deleted
    assert len(cloud.runs()) == 1


@pytest.mark.parametrize(
    ("number", "delete"), [(signal.SIGINT, "never"), (signal.SIGTERM, "always")]
)
def test_interruption(cloud: Cloud, number: signal.Signals, delete: str) -> None:
    cloud.set(codes="wait")
    process = subprocess.Popen(
        [
            *("/usr/bin/env", "--default-signal=INT", cloud.launch / VM),
            *(*PLACE, f"--delete={delete}", "--", CONFIG, WORKDIR),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cloud.environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    while "trains in" not in process.stdout.readline():
        pass
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 128 + number, errors
    if delete == "always":
        assert cloud.world["slices"] == {}
        return
    # The run goes on: the same command follows it, other flags are refused.
    other = cloud.run(VM, *PLACE, "--delete=always", "--", CONFIG, WORKDIR, "--other")
    assert other.returncode == 1
    assert "another run goes on there" in other.stderr
    assert "corm" in cloud.world["slices"]
    stop = other.stderr.split("end it: ")[1].splitlines()[0]
    again = subprocess.Popen(
        [cloud.launch / VM, *PLACE, "--max-restarts=0", "--", CONFIG, WORKDIR],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cloud.environment(),
    )
    assert again.stdout is not None
    while "trains in" not in again.stdout.readline():
        pass
    subprocess.run(stop, shell=True, check=True, env=cloud.environment())
    again.communicate(timeout=90)
    assert again.returncode == 75
    assert len(cloud.runs()) == 1


@pytest.mark.parametrize(
    ("script", "codes", "code", "runs"),
    [
        (VM, "75 0", 0, 2),
        (VM, "1", 1, 1),
        (QUEUED, "75 0", 0, 2),
        (QUEUED, "75 1", 1, 2),
        (QUEUED, "134", 134, 1),
    ],
)
def test_restarts_on_75_and_on_nothing_else(
    cloud: Cloud, script: str, codes: str, code: int, runs: int
) -> None:
    cloud.set(codes=codes)
    result = cloud.run(script, *PLACE, "--", CONFIG, WORKDIR)
    assert result.returncode == code, result.stderr
    assert len(cloud.runs()) == cloud.changes().count("tpu-vm ssh mount") == runs
    assert [change for change in cloud.changes() if "create" in change] == [
        "tpu-vm create" if script == VM else "queued-resources create"
    ]


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        (VM, 75, "restart 1 of at most 1"),
        (QUEUED, 1, "error: preempted again after 1 restarts"),
    ],
)
def test_restarts_are_limited(cloud: Cloud, script: str, code: int, message: str) -> None:
    cloud.set(codes="75")
    result = cloud.run(script, *PLACE, "--max-restarts=1", "--", CONFIG, WORKDIR)
    assert (result.returncode, len(cloud.runs())) == (code, 2)
    assert message in result.stderr


def test_broken_connection_is_not_the_end_of_the_run(cloud: Cloud) -> None:
    cloud.set(codes="wait", fates=["break", "break"])
    process = subprocess.Popen(
        [cloud.launch / VM, *PLACE, "--max-restarts=0", "--", CONFIG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cloud.environment(),
    )
    assert process.stdout is not None
    while "trains in" not in process.stdout.readline():
        pass
    pid = (cloud.root / "corm" / "host0" / "corm_jax_run" / "pid").read_text().strip()
    subprocess.run(["kill", "-TERM", "--", f"-{pid}"], check=True)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 75, errors
    assert errors.count("the connection broke, the run goes on") == 2
    assert len(cloud.runs()) == 1


def test_slice_that_is_taken_away_ends_tpu_vm(cloud: Cloud) -> None:
    cloud.set(fates=["preempt"])
    result = cloud.run(VM, *PLACE, "--", CONFIG)
    assert result.returncode == 255
    assert cloud.changes() == ["tpu-vm create", *UP]


def test_hosts_with_an_old_python_get_a_newer_one(cloud: Cloud) -> None:
    cloud.set()
    result = cloud.run(VM, *PLACE, "--", CONFIG, HOSTS_PYTHON="3.10")
    assert result.returncode == 0, result.stderr
    modules = [call[2:] for call in cloud.calls("python3") if call[1] == "-m"]
    assert [module[0] for module in modules] == ["pip", "uv"]
    assert modules[1] == ["uv", "venv", "--quiet", "--seed", "--python", "3.12", ".venv"]
    assert len(cloud.runs()) == 1


def test_worker_reports_a_host_that_was_reset(cloud: Cloud) -> None:
    run = cloud.home / "corm_jax_run"
    run.mkdir()
    (run / "pid").write_text("999999999\n")
    (run / "log").write_text("step 1\n")
    worker = cloud.launch / "tpu_worker.sh"
    followed = subprocess.run(
        ["bash", worker, "follow"],
        env=cloud.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert followed.returncode == 75
    assert followed.stdout.endswith("] step 1\n")
    started = time.monotonic()
    subprocess.run(["bash", worker, "stop"], env=cloud.environment(), check=True)
    assert time.monotonic() - started < 5


def test_queued_slice_is_replaced_when_it_is_taken_away(cloud: Cloud) -> None:
    cloud.set(fates=["preempt"])
    result = cloud.run(QUEUED, *PLACE, "--delete=success", "--", CONFIG, WORKDIR)
    assert result.returncode == 0, result.stderr
    once = ["queued-resources create", *UP]
    assert cloud.changes() == [*once, "queued-resources delete"] * 2
    assert cloud.world["requests"] == {}


def test_queued_request_that_failed(cloud: Cloud) -> None:
    cloud.set(requests={"corm": "FAILED"})
    result = cloud.run(QUEUED, *PLACE, "--", CONFIG, WORKDIR)
    assert "error: no such capacity" in result.stdout
    assert "Remove it before the next: gcloud compute tpus queued-resources delete corm" in (
        refused(result, first=False)
    )
    assert cloud.changes() == []


def test_queued_request_is_waited_for(cloud: Cloud) -> None:
    cloud.set(requests={"corm": "WAITING_FOR_RESOURCES"})
    process = subprocess.Popen(
        [cloud.launch / QUEUED, *PLACE, "--delete=success", "--", CONFIG, WORKDIR],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=cloud.environment(LAUNCH_POLL="1"),
    )
    assert process.stderr is not None
    while "WAITING_FOR_RESOURCES" not in process.stderr.readline():
        pass
    (cloud.root / "corm" / "host0").mkdir(parents=True)
    cloud.change(requests={"corm": "ACTIVE"}, slices={"corm": ["READY", "v4-8"]})
    process.communicate(timeout=90)
    assert process.returncode == 0
    assert cloud.changes() == [*UP, "queued-resources delete"]

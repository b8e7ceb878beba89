"""launch/tpu_vm.sh and launch/tpu_queued.sh against a fake gcloud whose hosts run real shells."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import (
    AWKWARD,
    CONFIG,
    REPOSITORY,
    Machine,
    printed_commands,
    refused,
    without_program,
)

VM = "tpu_vm.sh"
QUEUED = "tpu_queued.sh"
WORKDIR = "--workdir=gs://bucket/run"
PLACE = [
    "--name=corm",
    "--project=some-project",
    "--zone=us-central2-b",
    "--accelerator-type=v4-8",
    "--runtime-version=tpu-ubuntu2204-base",
    "--poll=0",
]
# The hosts' python3: answers the check of its version, and makes a .venv whose python is
# `train`, which installs nothing and takes its exit codes from a file.
PYTHON3 = """\
import os, pathlib, sys
if sys.argv[1] == "-c":
    sys.exit(os.environ.get("HOSTS_PYTHON") == "3.10")
if "venv" in sys.argv:
    binaries = pathlib.Path(sys.argv[-1]) / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(os.environ["FAKE_TRAIN"])
"""
TRAIN = """\
import os, pathlib, signal, sys, time
if "corm_jax.main" in sys.argv:
    codes = pathlib.Path(os.environ["FAKE_CLOUD"]) / "codes"
    code, *later = codes.read_text().split() if codes.exists() else ["0"]
    codes.write_text(" ".join(later or [code]))
    print("trains in", os.getcwd(), flush=True)
    if code == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        time.sleep(60)
    sys.exit(int(code))
"""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout in git with the launchers as they are now, committed or not."""
    path = tmp_path_factory.mktemp("checkout")
    for name in ("launch", "configs"):
        shutil.copytree(REPOSITORY / name, path / name)
    shutil.copy(REPOSITORY / "setup.cfg", path)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=test"]):
        subprocess.run(["git", *identity, *command], cwd=path, check=True)
    return path


class Cloud(Machine):
    """A machine with gcloud, and the cloud behind it."""

    def __init__(self, path: Path, checkout: Path) -> None:
        super().__init__(path, checkout / "launch")
        self.root = path / "cloud"
        self.root.mkdir()
        self.add("gcloud", (REPOSITORY / "tests" / "fake_gcloud.py").read_text())
        self.add("python3", PYTHON3)
        self.train = self.add("train", TRAIN)

    def environment(self, **variables: str) -> dict[str, str]:
        return super().environment(
            FAKE_CLOUD=str(self.root), FAKE_TRAIN=str(self.train), **variables
        )

    def set(self, codes: str = "0", **world: object) -> None:
        """Sets exit codes of successive runs, and the state of fake_gcloud.py."""
        (self.root / "codes").write_text(codes)
        self.change(**world)

    def change(self, **world: object) -> None:
        file = self.root / "world.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | world))

    @property
    def world(self) -> dict:
        return json.loads((self.root / "world.json").read_text())

    def commands(self) -> list[str]:
        """Returns the gcloud commands by their words alone, such as "tpu-vm create"."""
        calls = []
        for call in self.calls("gcloud"):
            words = [word for word in call[1:] if not word.startswith("--")]
            remote = [word for word in call if word.startswith("--command=")]
            action = remote[0].split()[-1 if "start" not in remote[0] else 2] if remote else ""
            calls.append(" ".join(words[2:4]) + (f" {action.removesuffix(';')}" if remote else ""))
        return calls

    def changes(self) -> list[str]:
        """Returns what the commands changed: creations, deletions, uploads, remote commands."""
        reading = ("list", "describe", "locations", "accelerator-types", "versions", "gs:")
        return [
            command
            for command in self.commands()
            if command and not any(word in command for word in reading)
        ]

    def runs(self) -> list[list[str]]:
        """Returns the flags of each run of the training program."""
        return [
            call[4:]
            for call in self.calls("train")
            if call[:4] == ["train", "-m", "corm_jax.main", "--distributed"]
        ]


@pytest.fixture
def cloud(tmp_path: Path, checkout: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path / "machine", checkout)
    yield cloud
    for pid in cloud.root.glob("*/*/corm_jax_run/pid"):
        group = f"-{pid.read_text().strip()}"
        subprocess.run(["kill", "-KILL", "--", group], check=False, stderr=subprocess.DEVNULL)


UP = ["tpu-vm scp", "tpu-vm ssh fi", "tpu-vm ssh start", "tpu-vm ssh follow"]


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
    assert [call[-1] for call in installs] == [".[tpu]"]


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
    _, errors = process.communicate(timeout=20)
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
    again.communicate(timeout=20)
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
    assert len(cloud.runs()) == runs
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
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    assert errors.count("the connection broke, the run goes on") == 2
    assert len(cloud.runs()) == 1


def test_queued_slice_is_replaced_when_it_is_taken_away(cloud: Cloud) -> None:
    cloud.set(codes="wait 0", fates=["preempt"])
    result = cloud.run(QUEUED, *PLACE, "--delete=success", "--", CONFIG, WORKDIR)
    assert result.returncode == 0, result.stderr
    once = ["queued-resources create", *UP]
    assert cloud.changes() == [*once, "queued-resources delete"] * 2
    assert cloud.world["requests"] == {}


def test_slice_that_is_taken_away_ends_tpu_vm(cloud: Cloud) -> None:
    cloud.set(codes="wait", fates=["preempt"])
    result = cloud.run(VM, *PLACE, "--", CONFIG)
    assert result.returncode == 255
    assert len(cloud.runs()) == 1


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
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert cloud.changes() == [*UP, "queued-resources delete"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--name": "Corm"}, "--name must be of at most 63 small letters"),
        ({"--name": "c;rm -rf"}, "--name must be of at most 63 small letters"),
        ({"--zone": "us-central9-z"}, "there are: us-central1-a us-central2-b"),
        ({"--accelerator-type": "v4-7"}, "--accelerator-type=v4-7 is not offered"),
        ({"--runtime-version": "tpu"}, "--runtime-version=tpu is not offered"),
        ({"--project": None}, "--project is missing (or the environment variable LAUNCH_PROJECT)"),
        ({"--accelerator-type": None}, "environment variable LAUNCH_ACCELERATOR_TYPE)"),
        ({"--delete": "yes"}, "--delete must be one of: never success always; not 'yes'"),
        ({"--max-restarts": "-1"}, "--max-restarts must be a whole number from 0"),
        ({"--": "--workdir=gs://other/run"}, "bucket gs://other cannot be read"),
        ({"--": "--config.data.data_dir=gs://other"}, "bucket gs://other cannot be read"),
        ({"--": "--config=configs/none.py"}, "config file configs/none.py is not in"),
    ],
)
def test_refused_before_anything_is_created(
    cloud: Cloud, change: dict[str, str | None], message: str
) -> None:
    options = dict(option.split("=", 1) for option in PLACE) | change
    flags = [CONFIG, WORKDIR, options.pop("--", None) or WORKDIR]
    values = [f"{key}={value}" for key, value in options.items() if value is not None]
    result = cloud.run(VM, *values, "--", *flags)
    assert message in refused(result, first=False)
    assert cloud.changes() == []


def test_queued_is_refused_before_anything_is_created(cloud: Cloud) -> None:
    result = cloud.run(QUEUED, *PLACE, "--", CONFIG, "--workdir=gs://other/run")
    assert "bucket gs://other cannot be read" in refused(result, first=False)
    assert cloud.changes() == []


@pytest.mark.parametrize(
    ("world", "messages"),
    [
        ({"account": ""}, ["nobody is logged in to gcloud; run: gcloud auth login"]),
        (
            {"refuse": {"compute tpus locations": "PERMISSION_DENIED: Cloud TPU API is off"}},
            ["PERMISSION_DENIED: Cloud TPU API is off", "its message stands above"],
        ),
        ({"slices": {"corm": ["READY", "v4-16"]}}, ["corm exists as a v4-16"]),
        ({"slices": {"corm": ["PREEMPTED", "v4-8"]}}, ["corm exists and is PREEMPTED", "delete"]),
    ],
)
def test_tpu_vm_refuses(cloud: Cloud, world: dict, messages: list[str]) -> None:
    cloud.set(**world)
    result = cloud.run(VM, *PLACE, "--", CONFIG)
    assert result.returncode == 1
    for message in messages:
        assert message.replace("its message", "gcloud's message") in result.stderr
    assert cloud.changes() == []


@pytest.mark.parametrize(("script", "kind"), [(VM, "tpu-vm"), (QUEUED, "queued-resources")])
def test_no_quota_passes_the_message_on(cloud: Cloud, script: str, kind: str) -> None:
    cloud.set(refuse={f"compute tpus {kind} create": "RESOURCE_EXHAUSTED: Quota limit 'TPUV4'"})
    result = cloud.run(script, *PLACE, "--delete=always", "--", CONFIG, WORKDIR)
    assert "RESOURCE_EXHAUSTED: Quota limit 'TPUV4'" in result.stderr
    assert "iam-admin/quotas" in refused(result, first=False)
    assert cloud.changes() == [f"{kind} create"]  # and no deletion of what is not there


def test_results_are_not_deleted_with_the_slice(cloud: Cloud) -> None:
    message = refused(cloud.run(VM, *PLACE, "--delete=always", "--", CONFIG))
    assert "give a bucket: --workdir=gs://BUCKET/DIR" in message
    message = refused(cloud.run(QUEUED, *PLACE, "--", CONFIG, "--workdir=runs/x"))
    assert "takes its disk along" in message


def test_config_must_be_committed(cloud: Cloud, checkout: Path) -> None:
    (checkout / "configs" / "mine.py").touch()
    result = cloud.run(VM, *PLACE, "--", "--config=configs/mine.py:demo")
    assert "is not in the last commit" in refused(result)


def test_missing_gcloud(cloud: Cloud, tmp_path: Path) -> None:
    path = without_program(cloud.environment(), ["gcloud"], tmp_path / "bin")
    result = cloud.run(VM, *PLACE, "--", CONFIG, PATH=path)
    assert "install the Google Cloud CLI: https://" in refused(result)


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

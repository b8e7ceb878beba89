"""launch/gpu_docker/: the script against a fake docker; what the image is built from."""

import os
import pwd
import re
import signal
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from launching import AWKWARD, CONFIG, LAUNCH, REPOSITORY, Machine, printed_commands, refused

SCRIPT = "gpu_docker/run.sh"
# Exit codes of successive `docker run` come from the variable CODES; FAIL names what fails.
DOCKER = """\
import os, pathlib, signal, sys, time
if sys.argv[1] == os.environ.get("FAIL"):
    sys.exit("Cannot connect to the Docker daemon")
if sys.argv[1] == "run":
    file = pathlib.Path(os.environ["HOME"], "codes")
    code, *later = (file.read_text() if file.exists() else os.environ.get("CODES", "0")).split()
    file.write_text(" ".join(later or [code]))
    if code == "wait":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: sys.exit({2: 130, 15: 75}[number]))
        print("waits", flush=True)
        time.sleep(30)
    sys.exit(int(code))
"""
NAME = pwd.getpwuid(os.getuid()).pw_name
USER = [f"--user={os.getuid()}:{os.getgid()}", "--env=HOME=/tmp", f"--env=USER={NAME}"]
RUN = ["docker", "run", "--rm", "--init", "--stop-timeout=300", *USER]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "machine")
    machine.add("docker", DOCKER)
    return machine


def test_builds_and_runs_every_flag_as_it_was_given(machine: Machine, tmp_path: Path) -> None:
    volume = f"{tmp_path}/machine:/the runs"
    arguments = [f"--volume={volume}", "--image=corm:x", "--", *AWKWARD, "--workdir=/the runs/a"]
    result = machine.run(SCRIPT, *arguments)
    assert result.returncode == 0, result.stderr
    executed = machine.calls("docker")
    assert executed == [
        ["docker", "version", "--format={{.Server.Version}}"],
        [
            "docker",
            "build",
            f"--file={REPOSITORY}/launch/gpu_docker/Dockerfile",
            "--build-arg=EXTRA=gpu",
            "--tag=corm:x",
            str(REPOSITORY),
        ],
        [*RUN, "--gpus=all", f"--volume={volume}", "corm:x", *AWKWARD, "--workdir=/the runs/a"],
    ]
    printed = machine.run(SCRIPT, "--dry-run", *arguments)
    assert printed_commands(printed.stdout) == executed
    assert machine.calls("docker") == executed


def test_builds_alone_for_tpus(machine: Machine) -> None:
    result = machine.run(SCRIPT, "--run=false", "--extra=tpu", "--image=r/corm:tpu")
    assert result.returncode == 0, result.stderr
    assert [call[1] for call in machine.calls("docker")] == ["version", "build"]
    assert "--build-arg=EXTRA=tpu" in machine.calls("docker")[1]


def test_runs_are_kept_in_the_checkout_unless_told_otherwise(machine: Machine) -> None:
    printed = machine.run(SCRIPT, "--dry-run", "--build=false", "--gpus=none", "--", CONFIG)
    volumes = [f"--volume={REPOSITORY}/{name}:/corm_jax/{name}" for name in ("runs", "data")]
    assert printed_commands(printed.stdout)[1:] == [
        ["mkdir", "-p", f"{REPOSITORY}/runs", f"{REPOSITORY}/data"],
        [*RUN, *volumes, "corm_jax:gpu", CONFIG],
    ]


@pytest.mark.parametrize("variable", [True, False])
def test_a_run_in_a_bucket_gets_the_credentials_to_read(machine: Machine, variable: bool) -> None:
    file = machine.home / ".config" / "gcloud" / "application_default_credentials.json"
    variables = {}
    if variable:
        file = machine.home / "key.json"
        variables = {"GOOGLE_APPLICATION_CREDENTIALS": str(file)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")
    arguments = ["--build=false", f"--volume={machine.home}:/x", "--", CONFIG]
    assert machine.run(SCRIPT, *arguments, "--workdir=gs://bucket/a", **variables).returncode == 0
    [call] = [call for call in machine.calls("docker") if call[1] == "run"]
    assert f"--volume={file}:/tmp/credentials.json:ro" in call
    assert "--env=GOOGLE_APPLICATION_CREDENTIALS=/tmp/credentials.json" in call
    machine.record.unlink()
    assert machine.run(SCRIPT, *arguments, "--workdir=/x/a", **variables).returncode == 0
    assert "credentials" not in str(machine.calls("docker"))


@pytest.mark.parametrize(
    ("codes", "code", "runs"), [("75 75 0", 0, 3), ("75", 75, 3), ("1", 1, 1), ("137", 137, 1)]
)
def test_restarts_on_75_and_on_nothing_else(
    machine: Machine, codes: str, code: int, runs: int
) -> None:
    arguments = ["--max-restarts=2", f"--volume={machine.home}:/runs", "--", CONFIG]
    result = machine.run(SCRIPT, *arguments, "--workdir=/runs/a", CODES=codes)
    assert result.returncode == code
    assert [call[1] for call in machine.calls("docker")].count("run") == runs


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_are_passed_on(machine: Machine, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [
            *("/usr/bin/env", "--default-signal=INT", LAUNCH / SCRIPT, "--max-restarts=3"),
            *(f"--volume={machine.home}:/runs", "--", CONFIG, "--workdir=/runs"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=machine.environment(CODES="wait"),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    os.killpg(process.pid, number)
    process.communicate(timeout=90)
    assert process.returncode == code
    assert [call[1] for call in machine.calls("docker")] == ["version", "build", "run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--volume=/nonexistent:/runs", "--", CONFIG], "/nonexistent does not exist"),
        (["--volume", "/tmp:/runs", "--", CONFIG], "--volume needs a value: --volume=VALUE"),
        (["--volume=runs:/runs", "--", CONFIG], "two absolute paths, not 'runs:/runs'"),
        (["--volume=/tmp:/data", "--", CONFIG], "/corm_jax/runs would go with the container"),
        (["--", CONFIG, "--workdir=/runs"], "/runs would go with the container"),
        (["--extra=cpu", "--", CONFIG], "--extra must be one of: gpu tpu; not 'cpu'"),
        (["--", CONFIG, "--config.data.folder=gs://b/a"], "mount the bucket where it runs"),
        ([], "name a config after --"),
    ],
)
def test_refused_before_anything_is_built(
    machine: Machine, arguments: list[str], message: str
) -> None:
    assert message in refused(machine.run(SCRIPT, *arguments))
    assert machine.calls() == []


def test_messages_of_docker_are_passed_on(machine: Machine) -> None:
    result = machine.run(SCRIPT, "--", CONFIG, FAIL="version")
    assert "Cannot connect to the Docker daemon" in result.stderr
    assert "docker does not answer" in refused(result, first=False)


def test_image_has_what_it_copies() -> None:
    """What COPY names exists, and is not left out by the .dockerignore."""
    directory = LAUNCH / "gpu_docker"
    kept = re.findall(r"^!(.+)$", (directory / "Dockerfile.dockerignore").read_text(), re.M)
    assert all((REPOSITORY / name).exists() for name in kept)
    copies = re.findall(r"^COPY (.+) \S+$", (directory / "Dockerfile").read_text(), re.M)
    sources = [source for copy in copies for source in copy.split() if source != "."]
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists()
        assert any(fnmatch(source, f"{name}*") for name in kept)


def test_image_installs_before_the_code_is_there(tmp_path: Path) -> None:
    """The layer of the installation has the metadata alone; the code comes later."""
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "corm_jax/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    build = "import setuptools.build_meta as b; b.prepare_metadata_for_build_editable('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True)
    [metadata] = tmp_path.glob("*.dist-info/METADATA")
    assert "Provides-Extra: gpu\n" in metadata.read_text()

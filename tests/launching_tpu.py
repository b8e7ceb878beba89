"""A Google Cloud of one zone to launch into, for tests of launch/tpu_*.sh."""

import json
import shutil
import subprocess
from pathlib import Path

from launching import REPOSITORY, Machine

VM = "tpu_vm.sh"
QUEUED = "tpu_queued.sh"
WORKDIR = "--workdir=/mnt/bucket/run"
PLACE = [
    "--name=corm",
    "--project=some-project",
    "--zone=us-central2-b",
    "--accelerator-type=v4-8",
    "--runtime-version=tpu-ubuntu2204-base",
    "--bucket=bucket",
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
    left = codes.with_suffix(f".{os.getpid()}")  # hosts share the file: never seen half-written
    left.write_text(" ".join(later or [code]))
    left.replace(codes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("trains in", os.getcwd(), flush=True)
    if code == "wait":
        time.sleep(60)
    sys.exit(int(code))
"""
# The hosts' sudo: changes nothing of this machine. What it installs comes to the host's own PATH.
SUDO = """\
import os, pathlib, sys
home = pathlib.Path(os.environ["HOME"])
if sys.argv[1] == "tee":
    with (home / "written").open("a") as file:
        file.write(sys.argv[2] + ": " + sys.stdin.read().strip() + "\\n")
if sys.argv[-2:] == ["--yes", "gcsfuse"]:
    (home / "bin").mkdir()
    (home / "bin" / "gcsfuse").symlink_to(os.environ["FAKE_GCSFUSE"])
"""
# Mounts are lines of a file in the host's home directory.
GCSFUSE = """\
import os, pathlib, sys
if os.environ.get("FAIL") == "gcsfuse":
    sys.exit("Error: 403: storage.objects.list denied")
with pathlib.Path(os.environ["HOME"], "mounts").open("a") as file:
    file.write(sys.argv[-1] + "\\n")
"""
MOUNTPOINT = """\
import os, pathlib, sys
mounts = pathlib.Path(os.environ["HOME"], "mounts")
sys.exit(not mounts.exists() or sys.argv[-1] not in mounts.read_text().splitlines())
"""
UP = ["tpu-vm scp", "tpu-vm ssh fi", "tpu-vm ssh mount", "tpu-vm ssh start", "tpu-vm ssh follow"]


def make_checkout(path: Path) -> Path:
    """Makes a small checkout in git with the launchers as they are now, committed or not."""
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
        self.add("sudo", SUDO)
        self.add("mountpoint", MOUNTPOINT)
        self.add("curl", "print('key')")
        self.add("lsb_release", "print('jammy')")
        # Not on PATH before a host has installed it.
        self.gcsfuse = self.add("gcsfuse", GCSFUSE).rename(path / "gcsfuse")

    def environment(self, **variables: str) -> dict[str, str]:
        return super().environment(
            FAKE_CLOUD=str(self.root),
            FAKE_TRAIN=str(self.train),
            FAKE_GCSFUSE=str(self.gcsfuse),
            **variables,
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
            words = [word for word in call[1:] if not word.startswith("--")][2:4]
            for line in [word.split() for word in call if word.startswith("--command=")]:
                words.append(line[2 if line[1].endswith("/tpu_worker.sh") else -1])
            calls.append(" ".join(words))
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

    def __enter__(self) -> "Cloud":
        return self

    def __exit__(self, *error: object) -> None:
        """Ends the runs that outlive their launcher."""
        for pid in self.root.glob("*/*/corm_jax_run/pid"):
            group = f"-{pid.read_text().strip()}"
            subprocess.run(["kill", "-KILL", "--", group], check=False, stderr=subprocess.DEVNULL)

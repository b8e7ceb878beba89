"""Runs the scripts of launch/ against programs that record what they are called with."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCH = REPOSITORY / "launch"
CONFIG = "--config=configs/vit_corm.py"
# What a shell, gcloud's splitting of --command, YAML or Kubernetes could take apart.
AWKWARD = [
    CONFIG,
    "--config.data.folder=/a folder/with  two spaces",
    '--config.x=it\'s "quoted"',
    "--config.y=$HOME $(touch hacked) `touch hacked` $$ $(PATH)",
    "--config.z=a;b&c|d>e<f*?[!x]{1,2}#~\\n\\",
    "--config.empty=",
    "",
    "--config.unicode=Käse: 日本, 'x': {y}",
    "--config.tuple=('a', 'b')",
]


def start_two(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Starts two processes of one device each by launch/local_multiprocess.sh.

    `variables` are of the environment.
    """
    return subprocess.Popen(
        [LAUNCH / "local_multiprocess.sh", *arguments],
        env={**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": "", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RECORDER = """\
#!{python} -IS
import json, os, sys
with open({record!r}, "a") as file:
    file.write(json.dumps(["{name}", *sys.argv[1:]]) + "\\n")
sys.argv[0] = {script!r}
exec(compile(open({script!r}).read(), {script!r}, "exec"))
"""


class Machine:
    """A directory of programs that come first on PATH, each of which records its arguments."""

    def __init__(self, path: Path, launch: Path = LAUNCH) -> None:
        self.path = path
        self.launch = launch
        self.record = path / "calls.jsonl"
        self.home = path / "home"
        self.home.mkdir(parents=True)
        (path / "bin").mkdir()

    def add(self, name: str, body: str = "") -> Path:
        """Adds a program; `body` is Python, and has sys.argv. Returns its path."""
        script = self.path / f"{name}.body"
        script.write_text(body)
        program = self.path / "bin" / name
        program.write_text(
            RECORDER.format(
                python=sys.executable, record=str(self.record), name=name, script=str(script)
            )
        )
        program.chmod(0o755)
        return program

    def calls(self, name: str | None = None) -> list[list[str]]:
        """Returns the commands in the order of their starts, with their names."""
        if not self.record.exists():
            return []
        calls = [json.loads(line) for line in self.record.read_text().splitlines()]
        return [call for call in calls if name in (None, call[0])]

    def environment(self, **variables: str) -> dict[str, str]:
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith("LAUNCH_")
        }
        return {
            **inherited,
            "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.home),
            **variables,
        }

    def run(
        self, script: str, *arguments: str, timeout: float = 180, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs launch/`script` to its end."""
        return subprocess.run(
            [str(self.launch / script), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(**variables),
            cwd=self.home,
            check=False,
        )


def printed_commands(output: str) -> list[list[str]]:
    """Returns the commands that --dry-run printed, split as a shell does."""
    return [shlex.split(line) for line in output.splitlines()]


def refused(result: subprocess.CompletedProcess[str], first: bool = True) -> str:
    """Returns the message of a launcher that gave up; `first`: before it did anything."""
    assert result.returncode == 1, result
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert not first or result.stderr.startswith("error: "), result.stderr
    return lines[0]


def without_program(environment: dict[str, str], names: Sequence[str], path: Path) -> str:
    """Returns a PATH that has the usual programs but not `names`."""
    path.mkdir()
    for directory in environment["PATH"].split(":"):
        for program in Path(directory).glob("*"):
            link = path / program.name
            if program.name not in names and not link.is_symlink():
                link.symlink_to(program)
    return str(path)

"""What holds for all launchers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from launching import LAUNCH, REPOSITORY

SOURCED = {"common.sh", "tpu.sh"}
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), LAUNCH / "slurm.sbatch"])
COMMANDS = [script for script in SCRIPTS if script.name not in SOURCED]


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(
        ["shellcheck", *SCRIPTS], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.name)
def test_help(script: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")
    text = script.read_text()
    if "/tpu.sh" in text:
        text += (LAUNCH / "tpu.sh").read_text()
    declared = "".join(re.findall(r"^(?:option|repeatable)=\((.*?)\)$", text, re.M | re.S))
    for name in re.findall(r"\[([-a-z]+)\]=", declared):
        assert f"  --{name}" in result.stdout

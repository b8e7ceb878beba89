"""The benchmark of conversion, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import REPOSITORY
from torch_models import import_timm


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "conversion.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_errors_of_each_library_are_recorded(tmp_path: Path) -> None:
    import_timm()
    path = tmp_path / "conversion.json"
    done = run("--names", "resnet18", "resnet8_nano", "--json", str(path))
    assert done.returncode == 0, done.stderr
    records = {record["name"]: record["value"] for record in json.loads(path.read_text())}
    assert records["names"] == 1  # resnet8_nano is nobody else's
    assert records["changed_by_round_trip"] == 0
    errors = [records[f"relative_error/resnet18/{library}"] for library in ("timm", "torchvision")]
    assert records["max_relative_error"] == max(errors)
    assert max(errors) < 1e-4
    assert done.stdout.count("| resnet18 |") == 2


def test_names_that_no_library_has_are_refused() -> None:
    pytest.importorskip("torch")
    done = run("--names", "resnet8_nano")
    assert (done.returncode, done.stdout.count("| resnet8_nano |")) == (1, 0)
    assert done.stderr.endswith("error: no library has a model of these names\n")

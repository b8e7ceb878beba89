import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command import REPOSITORY


def shipped() -> list[str]:
    """Returns the modules and the files of the pages."""
    patterns = ("corm_jax/**/*.py", "corm_jax/**/page/*")
    paths = [path for pattern in patterns for path in REPOSITORY.glob(pattern)]
    return [str(path.relative_to(REPOSITORY)) for path in paths]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The package as `pip install .` builds it, from a copy without this checkout's leftovers."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    names += shipped()
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    built = subprocess.run(
        [
            *(sys.executable, "-c", "import setuptools; setuptools.setup()"),
            *("bdist_wheel", f"--dist-dir={target}"),
        ],
        cwd=source,
        capture_output=True,
        text=True,
    )
    if "invalid command 'bdist_wheel'" in built.stderr:
        pytest.skip("needs setuptools >= 70.1")
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_wheel_holds_every_file_and_the_licence(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    assert set(shipped()) <= held
    assert any(name.endswith("LICENSE") for name in held)
    assert {name.split("/")[0].split("-")[0] for name in held} == {"corm_jax"}


def test_every_directory_of_modules_is_a_package() -> None:
    for module in REPOSITORY.glob("corm_jax/**/*.py"):
        assert (module.parent / "__init__.py").exists(), module


def test_every_import_is_declared() -> None:
    distributions = {  # where the name differs from the module's
        "PIL": "pillow",
        "absl": "absl-py",
        "open_clip": "open_clip_torch",
        "orbax": "orbax-checkpoint",
        "tensorflow": "tensorflow-cpu",
        "tensorflow_datasets": "tensorflow-datasets",
        "array_record": "array-record",
        "google.api_core": "google-api-core",
        "google.auth": "google-auth",
        "google.cloud": "google-cloud-storage",
        "google.protobuf": "protobuf",
    }

    def top(module: str) -> str:
        parts = module.split(".")
        return ".".join(parts[: 2 if parts[0] == "google" else 1])  # which several share

    setup = (REPOSITORY / "setup.cfg").read_text()
    declared = set(re.findall(r"^    ([\w-]+)(?:\[\w+\])?>=", setup, re.MULTILINE))
    imported = set()
    for module in REPOSITORY.glob("corm_jax/**/*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                imported |= {top(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(top(node.module))
    third_party = imported - set(sys.stdlib_module_names) - {"corm_jax"}
    assert {"jax", "flax", "tensorflow"} <= third_party
    assert {distributions.get(name, name) for name in third_party} <= declared


def test_make_names_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    made = subprocess.run(
        ["make", "install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert made.returncode != 0
    assert f"error: {old} is missing or older than Python 3.11" in made.stderr
    assert not (tmp_path / "venv").exists()

"""Runs of several processes: what they write and print, and how they end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import run, small_config, small_flags
from PIL import Image
from processes import environments, finish, free_port, start_all

from corm_jax import distributed
from corm_jax.data.dataset import open_dataset
from corm_jax.distributed import start_from_environment
from corm_jax.errors import UserError

CHANGES = {"train__steps": 6, "train__log_every": 2, "eval__every": 4, "checkpoint__every": 4}
COORDINATOR = {"CORM_COORDINATOR": "localhost:1", "CORM_NUM_PROCESSES": "2"}


def files(workdir: Path) -> set[str]:
    return {str(path.relative_to(workdir)) for path in workdir.glob("*")}


@pytest.mark.slow
def test_two_processes_train_and_measure_what_one_does(
    tmp_path: Path, shapes_data_dir: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    name = "configs/vit_corm.py"
    data_dir = tmp_path / "data"  # prepared by the first process
    code, output, errors = run(small_flags(name, shapes_data_dir, one, **CHANGES))
    assert code == 0, errors
    flags = small_flags(name, data_dir, two, **CHANGES)
    (code, first_output, first_errors), second = finish(start_all([flags] * 2, devices=4))
    assert code == 0, first_errors
    assert second == (0, "", "")  # the first process speaks for both
    assert first_output.splitlines()[0] == output.splitlines()[0]
    # Every line once, the same as of one process but for speed and the drawing of the data.
    kinds = [[line.split("  ")[0] for line in text.splitlines()] for text in (first_errors, errors)]
    drawn, *rest = kinds[0]
    assert drawn.startswith("drawing spurious_shapes/tiny")
    assert [line[:40] for line in rest] == [line[:40] for line in kinds[1]]

    assert files(two) == files(one)
    assert not list(two.glob("*/*tmp*"))
    results, expected = (json.loads((path / "results.json").read_text()) for path in (two, one))
    assert results["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    assert results["metrics"]["images"] == 48
    assert results["devices"].startswith("8 x")
    histories = [
        [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
        for path in (two, one)
    ]
    for found, wanted in zip(*histories, strict=True):
        assert found["step"] == wanted["step"]
        for key in wanted.keys() & {"train/loss", "validation/clean", "validation/core"}:
            assert found[key] == pytest.approx(wanted[key], abs=1e-5)
    pictures = []
    for path in (two, one):
        with Image.open(path / "examples.png") as picture:
            pictures.append(np.asarray(picture, int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # the same images, the same noise


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(tmp_path: Path, shapes_data_dir: Path) -> None:
    workdir = tmp_path / "run"
    flags = small_flags("configs/vit_erm.py", shapes_data_dir, workdir, **CHANGES)
    ends = finish(start_all([flags] * 2))
    assert [code for code, *_ in ends] == [0, 0], ends
    before = json.loads((workdir / "results.json").read_text())["metrics"]
    (workdir / "results.json").unlink()
    code, _, errors = run(flags)
    assert code == 0, errors
    assert "going on from the checkpoint of step 6" in errors
    after = json.loads((workdir / "results.json").read_text())["metrics"]
    assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once(tmp_path: Path, shapes_data_dir: Path) -> None:
    flags = small_flags(
        "configs/vit_erm.py", shapes_data_dir, tmp_path / "run", train__batch_size=9
    )
    ends = finish(start_all([flags] * 2))
    assert [code for code, *_ in ends] == [1, 1]
    told = [line for *_, errors in ends for line in errors.splitlines()]
    assert len(told) == 1, ends
    assert "config.train.batch_size=9 is not a multiple of the 2 devices" in told[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(tmp_path: Path, make_folder) -> None:
    """An image that one process alone reads cannot be decoded; the other waits in a step."""
    folder = make_folder(classes=2, images=12)
    config = small_config("configs/vit_erm.py:folder", tmp_path)
    config.data.update({"source": "folder", "folder": str(folder)})
    train = open_dataset(config).train
    read_by_second = training_images_of_second(config, train)
    broken = Path(train.images.describe(read_by_second))
    broken.write_bytes(broken.read_bytes()[:-200])
    flags = small_flags(
        "configs/vit_erm.py:folder",
        tmp_path,
        tmp_path / "run",
        data__source="folder",
        data__folder=folder,
        train__steps=4,
        eval__batch_size=4,
    )
    (code, _, errors), (second_code, _, second_errors) = finish(start_all([flags] * 2))
    assert (code, second_code) == (1, 1), (errors, second_errors)
    assert f"process 1: error: {broken} cannot be decoded" in second_errors
    assert "Traceback" not in errors + second_errors
    assert not (tmp_path / "run" / "results.json").exists()


def training_images_of_second(config, split) -> int:
    """Returns an image that the second of two processes reads in the first step, not the first."""
    from corm_jax.data.dataset import training_loader

    loader = training_loader(config, split, (0, 1))
    chosen = loader.select(0).indices
    return int(chosen[-1])


MERGE = """
import json, jax
from corm_jax import distributed
distributed.start_from_environment()
index = jax.process_index()
order = []
with distributed.first_alone("test"):
    order.append(index)
print(json.dumps([order, distributed.merge({str(index): "é" * 10 * index, "both": "same"})]))
"""


def test_what_processes_found_is_merged_in_all_of_them() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MERGE],
            env={**os.environ, "XLA_FLAGS": "", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for variables in environments(2)
    ]
    for index, (code, output, errors) in enumerate(finish(processes)):
        assert code == 0, errors
        assert json.loads(output) == [[index], {"0": "", "1": "é" * 10, "both": "same"}]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (COORDINATOR, "CORM_PROCESS_ID is not set, CORM_COORDINATOR is; set all or none"),
        ({**COORDINATOR, "CORM_PROCESS_ID": "2"}, "CORM_PROCESS_ID=2 must be below CORM_NUM_PROC"),
        ({**COORDINATOR, "CORM_PROCESS_ID": "x"}, "CORM_PROCESS_ID=x must be a number"),
        (
            {**COORDINATOR, "CORM_PROCESS_ID": "0", "CORM_COORDINATOR": "localhost"},
            "CORM_COORDINATOR=localhost must be host:port",
        ),
    ],
)
def test_variables_that_cannot_be_are_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        start_from_environment(variables)


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "CONNECT_SECONDS", 0.5)
    address = f"localhost:{free_port()}"
    with pytest.raises(UserError, match=f"CORM_COORDINATOR={address} cannot be reached .*refused"):
        start_from_environment(COORDINATOR | {"CORM_COORDINATOR": address, "CORM_PROCESS_ID": "1"})


def test_without_variables_a_process_is_alone() -> None:
    start_from_environment({})

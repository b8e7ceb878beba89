"""The command line of sweeps in real processes: stopped, killed, gone on with, failing."""

import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import REPOSITORY, SMALL, run, start

MODULE = "corm_jax.sweep"
FAILING = "erm,optimizer.learning_rate=1e+30"
CONFIG = """
from corm_jax.sweep.config import sweep_config

def get_config():
    config = sweep_config("{repository}/configs/vit_corm.py:demo")
    config.run.update_from_flattened_dict({run})
    config.grid = [{{"objective": "erm"}}, {{"objective": "erm", "optimizer.learning_rate": 1e30}},
                   {{"objective": "corm"}}]
    config.seeds = (0,)
    return config
"""


@pytest.fixture
def flags(tmp_path: Path, shapes_data_dir: Path) -> list[str]:
    """Of a sweep of three small runs, one of which fails."""
    changes = {**SMALL, "data.data_dir": str(shapes_data_dir), "data.selection_share": 0.25}
    (tmp_path / "sweep.py").write_text(
        CONFIG.format(repository=REPOSITORY, run={**changes, "train.steps": 2})
    )
    return [f"--config={tmp_path}/sweep.py", f"--workdir={tmp_path}/w"]


def end_when(
    condition: Callable[[], bool], number: signal.Signals, flags: list[str], cache: Path
) -> tuple[int, str]:
    """Starts the sweep and sends it a signal when the condition holds; its processes end too."""
    process = start(flags, cache, MODULE)
    wait_until(lambda: condition() or process.poll() is not None)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    wait_until(lambda: not any(is_running(child) for child in children))
    return process.returncode, errors


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: str) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True)
    return state.stdout.strip() not in ("", "Z", "Zs")


@pytest.mark.slow
def test_a_sweep_goes_on_after_ctrl_c_and_a_kill_and_tells_of_the_run_that_failed(
    flags: list[str], tmp_path: Path
) -> None:
    cache, workdir = tmp_path / "cache", tmp_path / "w"
    first, last = workdir / "erm/seed_0", workdir / "corm/seed_0"

    code, errors = end_when((first / "config.json").exists, signal.SIGINT, flags, cache)
    assert code == 130, errors
    assert errors.splitlines()[-1] == "stopped; the same command goes on"
    assert not (first / "results.json").exists()

    code, errors = end_when((last / "config.json").exists, signal.SIGKILL, flags, cache)
    assert code == -signal.SIGKILL
    assert not (last / "results.json").exists()
    finished = (first / "results.json").stat().st_mtime_ns

    code, output, errors = run(flags, cache, MODULE)
    assert code == 1, errors
    assert (first / "results.json").stat().st_mtime_ns == finished  # not repeated
    with (workdir / "sweep.csv").open() as file:
        erm, failed, corm = csv.DictReader(file)
    assert [row["arm"] for row in (erm, failed, corm)] == ["erm", FAILING, "corm"]
    assert (erm["status"], corm["status"]) == ("finished", "finished")
    assert failed["status"].startswith("error: ")
    assert "at step 1; training stopped" in failed["status"]
    assert "Traceback" not in errors
    results = json.loads((last / "results.json").read_text())
    assert float(corm["core"]) == results["metrics"]["core"]
    assert float(corm["selection_core"]) == results["selection"]["core"]
    assert results["selection"]["images"] == 24
    assert "step 2/2" in (last / "log.txt").read_text()
    for name in ("table.md", "summary.csv", "pareto.png"):
        assert (workdir / name).stat().st_size > 0
    assert (workdir / "table.md").read_text() in output
    assert f"{FAILING}, seed 0: error: " in errors


def test_a_wrong_key_is_one_line_and_nothing_is_written(flags: list[str], tmp_path: Path) -> None:
    code, output, errors = run([*flags, "--config.run.train.step=3"], module=MODULE)
    assert (code, output) == (1, "")
    assert errors == "error: unknown config key run.train.step (did you mean 'run.train.steps'?)\n"
    assert not (tmp_path / "w").exists()

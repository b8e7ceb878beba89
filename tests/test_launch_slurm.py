"""launch/slurm.sbatch under a fake sbatch that runs a copy of the script, as Slurm does."""

import shutil
import subprocess
from pathlib import Path

import pytest
from launching import AWKWARD, CONFIG, REPOSITORY, Machine, printed_commands, refused

SCRIPT = "launch/slurm.sbatch"
# Options before the script are sbatch's; the rest is the script and its arguments.
SBATCH = """\
import os, shutil, subprocess, sys
words = sys.argv[1:]
while words and words[0].startswith("--"):
    words.pop(0)
spool = os.path.join(os.environ["HOME"], "slurm_script")
shutil.copy(words[0], spool)
job = {"SLURM_JOB_ID": "123", "SLURM_SUBMIT_DIR": os.getcwd(), "SLURM_JOB_NUM_NODES": "2"}
sys.exit(subprocess.run(["bash", spool, *words[1:]], env={**os.environ, **job}).returncode)
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "machine")
    machine.add("sbatch", SBATCH)
    machine.add("srun", "import os, sys; sys.exit(int(os.environ.get('CODE', '0')))")
    machine.add("scontrol")
    machine.add("python")
    return machine


def sbatch(
    machine: Machine, *arguments: str, cwd: Path = REPOSITORY, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sbatch", "--nodes=2", *arguments],
        env=machine.environment(**variables),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_task_runs_every_flag_as_it_was_given(machine: Machine) -> None:
    gpus = {
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_NTASKS": "8",
        "SLURM_CPUS_PER_TASK": "6",
    }
    result = sbatch(machine, SCRIPT, "--", *AWKWARD, **gpus)
    assert result.returncode == 0, result.stderr
    assert machine.calls("srun") == [
        [
            "srun",
            "--label",
            "--kill-on-bad-exit=0",
            "--wait=300",
            "--gpu-bind=none",
            "--cpus-per-task=6",
            "env",
            "PYTHONUNBUFFERED=1",
            "python",
            "-m",
            "corm_jax.main",
            "--distributed",
            *AWKWARD,
        ]
    ]
    assert machine.calls("scontrol") == []
    printed = sbatch(machine, SCRIPT, "--dry-run", "--", *AWKWARD, **gpus)
    assert printed_commands(printed.stdout) == machine.calls("srun")


def test_dry_run_works_outside_of_slurm(machine: Machine) -> None:
    printed = machine.run("slurm.sbatch", "--dry-run", "--", CONFIG)
    assert [command[0] for command in printed_commands(printed.stdout)] == ["srun"]
    assert machine.calls() == []


@pytest.mark.parametrize(
    ("code", "count", "requeued"),
    [(75, "", True), (75, "99", True), (1, "", False), (143, "", False)],
)
def test_is_queued_again_on_75_only(
    machine: Machine, code: int, count: str, requeued: bool
) -> None:
    result = sbatch(machine, SCRIPT, "--", CONFIG, CODE=str(code), SLURM_RESTART_COUNT=count)
    assert result.returncode == code
    requeue = ["scontrol", "requeue", "Incomplete", "123"]
    assert machine.calls("scontrol") == ([requeue] if requeued else [])


def test_restarts_are_limited(machine: Machine) -> None:
    result = sbatch(
        machine, SCRIPT, "--max-restarts=2", "--", CONFIG, CODE="75", SLURM_RESTART_COUNT="2"
    )
    assert "after 2 restarts" in refused(result, first=False)
    assert machine.calls("scontrol") == []


def test_refuses_a_job_that_leaves_gpus_idle(machine: Machine) -> None:
    result = sbatch(machine, SCRIPT, "--", CONFIG, SLURM_GPUS_ON_NODE="4")
    assert "the job has 2 tasks and 8 GPUs" in refused(result)
    assert machine.calls("srun") == []


def test_refuses_to_run_outside_of_a_job_or_a_checkout(machine: Machine) -> None:
    message = refused(machine.run("slurm.sbatch", "--", CONFIG))
    assert "submit it: sbatch launch/slurm.sbatch" in message
    shutil.copy(REPOSITORY / SCRIPT, machine.home)
    message = refused(sbatch(machine, "slurm.sbatch", "--", CONFIG, cwd=machine.home))
    assert "is no checkout of this code; submit from there" in message
    assert "config file configs/none.py" in refused(
        sbatch(machine, SCRIPT, "--", "--config=configs/none.py")
    )


def test_options_of_sbatch_stand_before_the_first_command() -> None:
    # Slurm reads #SBATCH lines up to the first line that is neither comment nor empty.
    lines = (REPOSITORY / SCRIPT).read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH ")]
    assert options == [line for line in lines[:first] if line.startswith("#SBATCH ")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@300"} <= set(options)

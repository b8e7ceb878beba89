"""Trains every arm of a grid over seeds, selects one, and compares them all.

python -m corm_jax.sweep --config=configs/sweep_pareto.py
python -m corm_jax.sweep --config=configs/sweep_pareto.py --config.seeds='(0,)' --config.jobs=2
python -m corm_jax.sweep --config=configs/sweep_objectives.py:folder --config.run.data.folder=DIR

--config.run.KEY=VALUE changes a key of all runs (corm_jax/config.py lists them), --config.KEY=VALUE
one of the sweep (corm_jax/sweep/config.py). WORKDIR receives sweep.csv (runs), summary.csv and
table.md (arms), pareto.png, and the runs themselves as ARM/seed_N, each with its log.txt.

The same command goes on with a sweep that was stopped, or killed: finished runs are not repeated.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax.command_line import default_workdir, load_config, parse_config
from corm_jax.errors import UserError
from corm_jax.files import replacing
from corm_jax.sweep import output, picture
from corm_jax.sweep.config import Run, plan
from corm_jax.sweep.selection import select
from corm_jax.sweep.worker import run_all
from corm_jax.terminal import set_up_terminal


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`; returns the exit code: 1 if a run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m corm_jax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--workdir", type=Path, help="default: runs/VARIANT/FILE")
    arguments, overrides = parser.parse_known_args(argv)
    set_up_terminal()
    try:
        config = parse_config(arguments.config, overrides)
        if config.base != load_config(arguments.config).base:
            raise UserError("config.base has no flag: config.run would still be of the file's base")
        workdir = (arguments.workdir or default_workdir(arguments.config)).expanduser()
        return _sweep(config, plan(config, workdir), workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130


def _sweep(config: ConfigDict, runs: list[Run], workdir: Path) -> int:
    errors: dict[Path, str] = {}
    left = [run for run in runs if not output.is_finished(run)]
    output.write_runs(workdir / "sweep.csv", runs, errors)
    with (
        contextlib.closing(run_all(left, config.jobs)) as ended,
        tqdm(total=len(runs), initial=len(runs) - len(left), unit="run", disable=None) as bar,
    ):
        for run, error in ended:
            if error:
                errors[run.workdir] = f"error: {error}"
            bar.write(f"{run.arm.name}, seed {run.seed}: {_outcome(run, error)}", file=sys.stderr)
            bar.update()
            output.write_runs(workdir / "sweep.csv", runs, errors)
    summaries = output.summaries(runs)
    selected, reason = select(summaries, config.select)
    output.write_summary(workdir / "summary.csv", summaries, selected)
    table = output.table(config, summaries, selected)
    with replacing(workdir / "table.md") as temporary:
        temporary.write_text(table)
    title = f"{workdir.name}: mean ± standard error over {len(config.seeds)} seeds"
    picture.draw(workdir / "pareto.png", summaries, title, selected)
    print(table)
    print(f"selected: {selected}" if selected else f"no arm is selected: {reason}")
    print(f"runs: {workdir}/sweep.csv; arms: {workdir}/summary.csv, table.md, pareto.png")
    for path, error in errors.items():
        print(f"{path}: {error}", file=sys.stderr)
    return 1 if errors else 0


def _outcome(run: Run, error: str) -> str:
    if error:
        return f"error: {error}"
    found = output.numbers(run)
    return ", ".join(f"{k} {found[k]:.3f}" for k in ("clean", "core", "spurious") if k in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

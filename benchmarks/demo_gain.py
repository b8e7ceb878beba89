"""What CoRM gains on the embedded data set: objectives and seeds, means and standard errors.

    python benchmarks/demo_gain.py --json demo_gain.json

Trains the demo of `configs/vit_erm.py` and `configs/vit_corm.py` once for each seed (a seed decides
initialisation, order, augmentation and noise; the images are the same). Runs are kept in --workdir
and finished ones are not repeated. A gain is the mean over seeds of corm minus erm, in points.
"""

import argparse
import math
import sys
from pathlib import Path

from corm_jax.errors import UserError
from corm_jax.files import write_json
from corm_jax.recipes import vit
from corm_jax.report import SUMMARY_KEYS, summary_row
from corm_jax.terminal import set_up_terminal

# JSON name -> the metric whose gain it is.
GAINS = {"core_gain": "core", "clean_change": "clean", "counterfactual_gain": "counterfactual"}


def run(objective: str, seed: int, steps: int, workdir: Path) -> dict[str, float]:
    """Returns the summary of one demo run."""
    from corm_jax.train import train  # imports tensorflow, after `set_up_terminal`

    config = vit("demo", objective=objective)
    config.seed = seed
    if steps:
        config.train.steps = steps
    return summary_row(train(config, workdir / f"{objective}-seed{seed}"))


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Returns the mean and its standard error (NaN for a single value)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def format_cell(values: list[float], scale: float) -> str:
    """Returns "mean ± standard error"."""
    mean, error = mean_and_error([scale * value for value in values])
    digits = 1 if scale > 1 or mean > 10 else 2
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument(
        "--objectives",
        nargs="+",
        default=["erm", "corm"],
        help="presets to train; gains are of corm over erm",
    )
    parser.add_argument("--steps", type=int, default=0, help="fewer steps, for a trial")
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo_gain"))
    parser.add_argument("--json", type=Path, help="also write [{name, value, unit}] to this file")
    arguments = parser.parse_args()
    set_up_terminal()

    rows: dict[str, list[dict[str, float]]] = {}
    try:
        for seed in range(arguments.seeds):
            for objective in arguments.objectives:
                print(f"{objective}, seed {seed}", file=sys.stderr)
                row = run(objective, seed, arguments.steps, arguments.workdir)
                rows.setdefault(objective, []).append(row)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    keys = (*SUMMARY_KEYS, "seconds")
    print(f"spurious_shapes, mean ± standard error of {arguments.seeds} seeds, accuracies in %\n")
    print("| objective | " + " | ".join(keys) + " |")
    print("|---" * (len(keys) + 1) + "|")
    for objective, runs in rows.items():
        cells = [
            format_cell(
                [r.get(key, math.nan) for r in runs], 1 if key in ("rcs", "seconds") else 100
            )
            for key in keys
        ]
        print(f"| {objective} | " + " | ".join(cells) + " |")

    records = []
    if {"erm", "corm"} <= rows.keys():
        print()
        for name, key in GAINS.items():
            pairs = zip(rows["corm"], rows["erm"], strict=True)
            gains = [100 * (corm[key] - erm[key]) for corm, erm in pairs]
            print(f"{name}: {format_cell(gains, 1)} points")
            records.append({"name": name, "value": mean_and_error(gains)[0], "unit": "points"})
    if arguments.json:
        write_json(arguments.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())

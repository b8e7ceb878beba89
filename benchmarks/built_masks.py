"""What CoRM gains with built masks: trained with them, measured with the true ones, beside ERM.

    python benchmarks/built_masks.py --json built_masks.json

Builds the masks of `configs/masks.py` (from an encoder that saw no mask) once, then trains the demo
of `configs/vit_erm.py` and `configs/vit_corm.py` for each seed, CoRM with the built masks of the
training images. All are evaluated with the true masks. Runs are kept in --workdir and finished ones
are not repeated. The gain is the mean over seeds of corm minus erm, in points.
"""

import argparse
import math
import sys
from pathlib import Path

from demo_gain import format_cell, mean_and_error

from corm_jax.errors import UserError
from corm_jax.files import write_json
from corm_jax.recipes import vit
from corm_jax.report import SUMMARY_KEYS, summary_row
from corm_jax.terminal import set_up_terminal

GAIN = "built_core_gain"


def build_masks(workdir: Path) -> tuple[Path, Path]:
    """Returns the directories of (the built masks, the true ones)."""
    # These import tensorflow, after `set_up_terminal`.
    from corm_jax.data.prepare import prepare_embedded
    from corm_jax.masks.building import pipeline, report
    from corm_jax.masks.building.config import build_config

    config = build_config("demo")
    built = pipeline.build(config, workdir)
    print("\n".join(report.summary(config, built)), file=sys.stderr)
    _, true = prepare_embedded(config.data.tfds_name, Path(config.data.data_dir))
    return workdir / "masks", true


def run(
    objective: str, seed: int, masks: tuple[Path, Path], steps: int, workdir: Path
) -> dict[str, float]:
    """Returns the summary of one run, trained with the first masks and measured with the second."""
    from corm_jax.train import train  # imports tensorflow, after `set_up_terminal`

    config = vit("demo", objective=objective)
    config.seed = seed
    config.data.masks, config.data.validation_masks = map(str, masks)
    if steps:
        config.train.steps = steps
    return summary_row(train(config, workdir / f"{objective}-seed{seed}"))


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--steps", type=int, default=0, help="fewer steps, for a trial")
    parser.add_argument("--workdir", type=Path, default=Path("runs/built_masks"))
    parser.add_argument("--json", type=Path, help="also write [{name, value, unit}] to this file")
    arguments = parser.parse_args()
    set_up_terminal()

    rows: dict[str, list[dict[str, float]]] = {"erm": [], "corm": []}
    try:
        masks = build_masks(arguments.workdir / "masks")
        for seed in range(arguments.seeds):
            for objective in rows:
                print(f"{objective}, seed {seed}", file=sys.stderr)
                row = run(objective, seed, masks, arguments.steps, arguments.workdir)
                rows[objective].append(row)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    keys = (*SUMMARY_KEYS, "seconds")
    print(f"spurious_shapes, mean ± standard error of {arguments.seeds} seeds, accuracies in %\n")
    print("| objective | " + " | ".join(keys) + " |")
    print("|---" * (len(keys) + 1) + "|")
    for objective, runs in rows.items():
        scales = {key: 1 if key in ("rcs", "seconds") else 100 for key in keys}
        cells = [format_cell([row.get(key, math.nan) for row in runs], scales[key]) for key in keys]
        print(f"| {objective} | " + " | ".join(cells) + " |")

    pairs = zip(rows["corm"], rows["erm"], strict=True)
    gains = [100 * (corm["core"] - erm["core"]) for corm, erm in pairs]
    print(f"\n{GAIN}: {format_cell(gains, 1)} points")
    if arguments.json:
        write_json(
            arguments.json, [{"name": GAIN, "value": mean_and_error(gains)[0], "unit": "points"}]
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

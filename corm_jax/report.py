"""Results for people: results.json, pictures, and the table that compares runs."""

import argparse
import datetime
import platform
import sys
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

import corm_jax
from corm_jax.errors import UserError
from corm_jax.files import read_json, replacing, run_path, write_json
from corm_jax.protocols.summary import DEFINITIONS, extra_definitions
from corm_jax.protocols.views import ablated, core_region, dilations, noisy_pair
from corm_jax.steps import expand_batch

matplotlib.use("agg")

EXAMPLES = 8
PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets"),
    *("ml_collections", "clu", "numpy"),
)
SUMMARY_KEYS = (
    *("clean", "core", "spurious", "rcs"),
    *("swapped_background", "grey_background", "grey_object", "counterfactual"),
)


def results(
    config: ConfigDict,
    *,
    metrics: dict[str, float],
    selection: dict[str, float],
    extra: dict[str, dict[str, float]],
    seconds: float,
    skipped: list[str],
    counts: dict[str, int],
) -> dict[str, Any]:
    """Returns the content of results.json: metrics, their definitions, and where they come from.

    Args:
      config: the run's config.
      metrics: of the final evaluation on the validation split.
      selection: the same on the images that `config.data.selection_share` sets aside, if any.
      extra: of each extra set: clean, clean_plain, images, and how many classes occur in it.
      seconds: time spent on training steps and their compilation.
      skipped: images that could not be decoded.
      counts: of the join of images and masks.
    """
    definitions = {name: DEFINITIONS[name] for name in metrics}
    for name, found in extra.items():
        metrics = metrics | {name: found["clean"], f"{name}_plain": found["clean_plain"]}
        definitions |= extra_definitions(name, int(found["classes"]))
    return {
        "objective": config.objective,
        "control": config.control,
        "model": config.model.name,
        "metrics": metrics,
        "selection": selection,
        "definitions": definitions,
        "extra_sets": {
            name: {"images": found["images"], "classes": found["classes"]}
            for name, found in extra.items()
        },
        "protocol": {
            "name": "complement",
            "sigma": config.eval.sigma,
            "trials": config.eval.trials,
            "dilations": dilations(config.data.image_size),
            "noise_seed": config.eval.seed,
        },
        "seed": config.seed,
        "steps": config.train.steps,
        "train_seconds": round(seconds, 2),
        "masks": counts,
        "skipped_images": skipped,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Returns the versions of this package, of Python, and of the libraries that matter.

    Args:
      packages: further distributions.
    """
    return {
        "corm_jax": corm_jax.__version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in (*PACKAGES, *packages)},
    }


def draw_curves(
    path: Path, records: list[dict[str, Any]], metrics: dict[str, float], config: ConfigDict
) -> None:
    """Draws a run's loss, weighted terms, gradient norms and accuracies by step.

    Args:
      path: PNG file to write.
      records: of the run's history.
      metrics: of the final evaluation, drawn at the last step.
      config: the run's.
    """

    def series(name: str) -> tuple[list[int], list[float]]:
        pairs = [(r["step"], r[name]) for r in records if name in r]
        return [s for s, _ in pairs], [v for _, v in pairs]

    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, norms, accuracy = figure.subplots(1, 3)
    loss.plot(*series("train/loss"), label="total", color="black")
    norms.plot(*series("train/gradient_norm"), label="total", color="black")
    for number, (label, term) in enumerate(config.terms.items()):
        style = {"label": label, "color": f"C{number}", "linestyle": "--"}
        loss.plot(*weighted_values(records, label, term.weight), **style)
        norms.plot(*series(f"train/terms/{label}/gradient_norm"), **style)
    for number, name in enumerate(("clean", "core", "spurious")):
        if name not in metrics:  # no masks
            continue
        steps, values = series(f"validation/{name}")
        color = f"C{number}"
        accuracy.plot(
            [*steps, config.train.steps], [*values, metrics[name]], label=name, color=color
        )
        accuracy.plot(steps, values, "o", color=color)
        accuracy.plot(config.train.steps, metrics[name], "*", color=color, markersize=12)
    loss.set(title="loss and its weighted terms", yscale="log")
    norms.set(title="gradient norm, and each weighted term's", yscale="log")
    for axes in (loss, norms):
        # A term that is nearly nothing would squeeze the others into one line.
        axes.set_ylim(bottom=max(axes.get_ylim()[0], axes.get_ylim()[1] * 1e-4))
    accuracy.set(title="validation accuracy (o: a subset, *: all images)", ylim=(0, 1))
    for axes in (loss, norms, accuracy):
        axes.set(xlabel="step", xlim=(0, config.train.steps * 1.02))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=9)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{config.objective}, {config.model.name}")
    _save(figure, path)


def weighted_values(
    records: list[dict[str, Any]], label: str, weight: float
) -> tuple[list[int], list[float]]:
    """Returns (steps, values of a term times its weight there).

    Args:
      records: of a run's history.
      label: the term's.
      weight: the term's, where the records hold none because it is constant.
    """
    name = f"train/terms/{label}"
    pairs = [
        (r["step"], r.get(f"{name}/weight", weight) * r[f"{name}/value"])
        for r in records
        if f"{name}/value" in r
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def draw_examples(
    path: Path, batch: dict[str, Any], class_names: Sequence[str], config: ConfigDict
) -> None:
    """Draws validation images, their core masks and the views that the metrics use.

    Args:
      path: PNG file to write.
      batch: as loaded for the `ablations` protocol.
      class_names: names of the labels.
      config: the run's.
    """
    masked = np.flatnonzero(batch["has_mask"])
    if not masked.size:
        masked = np.flatnonzero(batch["weight"])
    # One image of each class first, then whatever comes.
    _, firsts = np.unique(batch["label"][masked], return_index=True)
    order = np.concatenate([np.sort(firsts), np.setdiff1d(np.arange(len(masked)), firsts)])
    chosen = masked[order[:EXAMPLES]]
    batch = jax.tree.map(lambda value: jnp.asarray(value[chosen]), batch)
    batch, partner = expand_batch(batch), expand_batch(batch["partner"])
    region, _ = core_region(batch["core_mask"])
    core, spurious = noisy_pair(
        batch, region, seed=config.eval.seed, trial=jnp.asarray(0), sigma=config.eval.sigma
    )
    views, _ = ablated(batch, partner, region)
    rows = {
        "image": batch["image"],
        "core mask": batch["core_mask"],
        "core region\n(dilated)": region,
        "core accuracy:\nnoise outside": core,
        "spurious accuracy:\nnoise on it": spurious,
        "background\nswapped": views["swapped_background"],
        "background\ngrey": views["grey_background"],
        "object\ngrey": views["grey_object"],
    }
    figure = Figure(figsize=(1.5 * len(chosen) + 1.2, 1.5 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for row, (name, images) in enumerate(rows.items()):
        for column, image in enumerate(np.asarray(images)):
            panel = axes[row, column]
            shown = image[..., 0] if image.shape[-1] == 1 else image
            panel.imshow(shown, cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            if row == 0:
                panel.set_title(class_names[int(batch["label"][column])], fontsize=9)
        axes[row, 0].set_ylabel(name, fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


def summary_row(results: dict[str, Any]) -> dict[str, Any]:
    """Returns {objective, clean, core, spurious, rcs, each extra set, seconds} of a run.

    A run under a control has it in its name: "corm (shuffled)".
    """
    metrics, control = results["metrics"], results["control"]
    row = {"objective": results["objective"] + ("" if control == "none" else f" ({control})")}
    names = dict.fromkeys((*SUMMARY_KEYS, *results["extra_sets"]))
    row |= {name: metrics[name] for name in names if name in metrics}
    return {**row, "seconds": results["train_seconds"]}


def _finished_row(workdir: Path) -> dict[str, Any]:
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: {workdir} holds no finished run")
    try:
        return summary_row(read_json(path))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold the results of a run ({error!r})") from error


def format_table(rows: list[dict[str, Any]]) -> str:
    """Returns runs as a table; accuracies in percent."""
    keys = list(dict.fromkeys(k for row in rows for k in row if k not in ("objective", "seconds")))
    lines = [["objective", *keys, "seconds"]]
    for row in rows:
        values = {key: row.get(key, float("nan")) for key in keys}
        cells = [f"{v:.3f}" if k == "rcs" else f"{100 * v:.1f}%" for k, v in values.items()]
        lines.append([row["objective"], *cells, f"{row['seconds']:.0f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if place else f"{cell:<{width}}"
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compares finished runs, or writes the page about evaluations; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m corm_jax.report",
        description="Compares finished runs in one table; or evaluations, or runs, on one page.",
    )
    add = parser.add_argument
    add(
        "workdirs",
        nargs="+",
        type=partial(run_path, what="DIR"),
        metavar="DIR",
        help="of a run; with --output also of an evaluation (python -m corm_jax.evaluate)",
    )
    add(
        "--summary",
        type=partial(run_path, what="--summary"),
        help="also write the table as JSON to this file",
    )
    add(
        "--output",
        type=partial(run_path, what="--output"),
        metavar="FILE.html",
        help="write a page about all DIRs instead",
    )
    try:
        arguments = parser.parse_args(argv)
        if arguments.output and arguments.summary:
            parser.error("--summary goes with the table, --output takes its place")
        if arguments.output:
            # Imported here: it imports what imports this module.
            from corm_jax.html_report.document import write_report

            size = write_report(arguments.workdirs, arguments.output)
            models = (
                "1 model" if len(arguments.workdirs) == 1 else f"{len(arguments.workdirs)} models"
            )
            print(f"{arguments.output}: {models}, {size / 1e6:.1f} MB")
            return 0
        rows = [_finished_row(path) for path in arguments.workdirs]
        if arguments.summary:
            write_json(arguments.summary, rows)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(format_table(rows))
    if any("grey_object" in row for row in rows):
        print("\ngrey_object: lower is better")
    print("\npictures:")
    for path in arguments.workdirs:
        print(f"  {path}/examples.png  {path}/curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a build made: numbers, a table of the classes, a contact sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from corm_jax.data.join import join
from corm_jax.data.pipeline import ImageSource
from corm_jax.files import replacing
from corm_jax.masks import images, show
from corm_jax.masks.building.kinds import Weights
from corm_jax.masks.building.selection import Feature
from corm_jax.masks.building.store import FeatureStore
from corm_jax.masks.records import KINDS, MaskRecords

SAMPLE = 24  # images on the contact sheet
NAMED = 20  # classes in the summary


def numbers(
    records: MaskRecords,
    stores: Mapping[str, FeatureStore],
    class_names: Sequence[str],
    features: Sequence[Feature],
    weights: Weights,
) -> dict[str, Any]:
    """Returns what was built: counts of images, masks and features, in total and by class."""
    totals = {
        split: {
            "images": len(store),
            "undecodable": int((~store.valid).sum()),
            "accuracy": float((store.label == store.predicted)[store.valid].mean()),
            "masks": 0,
            **dict.fromkeys(KINDS, 0),
        }
        for split, store in stores.items()
    }
    masked = np.zeros(len(class_names), int)
    for split, store in stores.items():
        rows = join(store.file_names, records.file_names).rows
        found = rows >= 0
        totals[split]["masks"] = int(found.sum())
        for kind in KINDS:
            totals[split][kind] = int(records.has(kind)[rows[found]].sum())
        masked += np.bincount(store.label[found], minlength=len(class_names))
    classes = []
    for index, name in enumerate(class_names):
        own = [f.feature for f in features if f.class_index == index]
        core = [channel for channel in own if weights[index, channel][0] > 0.5]
        spurious = [channel for channel in own if channel not in core]
        classes.append(
            {"class": name, "core": core, "spurious": spurious, "images": int(masked[index])}
        )
    return {"splits": totals, "classes": classes}


def draw(path: Path, records: MaskRecords, splits: Mapping[str, ImageSource]) -> None:
    """Draws a sample of the masks over their images."""
    where: dict[int, tuple[ImageSource, int]] = {}
    for source in splits.values():
        rows = join(source.file_names, records.file_names).rows
        where |= {int(row): (source, index) for index, row in enumerate(rows) if row >= 0}

    def read(row: int) -> images.Image:
        source, index = where[row]
        ((data, label),) = source.read([index])
        return images.Image(data, source.class_names[label], source.describe(index))

    found = images.Images(np.array(sorted(where)), read)
    show.draw(path, records, found, show.choose(records, found, n=SAMPLE, seed=0))


def write(path: Path, config: ConfigDict, built: Mapping[str, Any]) -> None:
    """Writes the report as Markdown.

    Args:
      path: the file.
      config: of the build.
      built: as `numbers` returns it, with encoded, seconds, encoded_again and perhaps iou.
    """
    lines = ["# Built masks", "", *summary(config, built), "", "![a sample](masks.png)", ""]
    lines += [
        "| class | core features | spurious features | images with masks |",
        "|---|---|---|---|",
    ]
    for row in built["classes"]:
        core, spurious = (", ".join(map(str, row[kind])) or "-" for kind in KINDS)
        lines.append(f"| {row['class']} | {core} | {spurious} | {row['images']} |")
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def summary(config: ConfigDict, built: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a summary, for the report and the terminal."""
    classes = built["classes"]
    totals = {kind: sum(len(row[kind]) for row in classes) for kind in KINDS}
    lines = [f"- features: {totals['core']} core, {totals['spurious']} spurious"]
    without = [row["class"] for row in classes if not row["core"]]
    if without:
        shown = ", ".join(without[:NAMED]) + (", ..." if len(without) > NAMED else "")
        lines.append(
            f"- classes without a core feature: {len(without)} of {len(classes)} ({shown})"
        )
    lines += _origin(config)
    for split, row in built["splits"].items():
        lines.append(
            f"- {split}: {row['masks']:,} of {row['images']:,} images have masks, {row['core']:,} "
            f"core, {row['spurious']:,} spurious; the encoder's accuracy {row['accuracy']:.1%}"
            + (f"; {row['undecodable']} images cannot be decoded" if row["undecodable"] else "")
        )
    for split, row in built.get("iou", {}).items():
        lines.append(
            f"- {split}: mean intersection over union with the true core masks {row['binary']:.3f} "
            f"(above half of the maximum), {row['soft']:.3f} (soft), {row['images']:,} images"
        )
    if built["encoded"]:
        speed = built["encoded"] / built["seconds"]
        lines.append(f"- encoded {built['encoded']:,} images at {speed:.0f} images/s")
    lines.append(f"- encoded again, for maps that were not kept at first: {built['encoded_again']}")
    return lines


def _origin(config: ConfigDict) -> list[str]:
    """Returns the lines that say whose the features are, and who said which are core."""
    encoder = config.encoder
    if encoder.kind == "demo":
        what = f"a ResNet that the main job trained on {encoder.demo_data}, without masks"
    else:
        what = f"{encoder.kind} {encoder.path}"
    who = config.annotations.path or "nobody: WARNING: every feature counts as core"
    if encoder.kind == "demo" and not config.annotations.path:
        who = "the true masks, which play the workers of the demo (annotations.csv)"
    return [f"- encoder: {what}", f"- annotated by: {who}"]

"""What an evaluation leaves: where its numbers come from, and the outcome of every image."""

import hashlib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax import report
from corm_jax.errors import UserError
from corm_jax.files import replacing
from corm_jax.masks.checks import KINDS
from corm_jax.metrics import Outcome
from corm_jax.protocols.types import Measured
from corm_jax.protocols.views import dilations

if TYPE_CHECKING:  # they import tensorflow, which who reads evaluations need not wait for
    from corm_jax.data.pipeline import Split
    from corm_jax.subjects import Subject

# Where config.data keeps the name of the data, by source.
SOURCES = {"folder": "folder", "tfds": "tfds_name"}


def provenance(
    subject: "Subject", config: ConfigDict, split: "Split", split_name: str
) -> dict[str, Any]:
    """Returns all that metrics depend on, and the versions of the libraries, as JSON in groups.

    Args:
      subject: what is evaluated.
      config: with `data` and `eval`.
      split: the images.
      split_name: its name.
    """
    data = config.data
    return {
        "model": {"name": subject.name, "weights": subject.weights},
        "preprocessing": {
            "image_size": data.image_size,
            "center_crop_share": data.center_crop_share,
            "interpolation": "bilinear",
            # Follows from the image size, so that it is no reason not to compare.
            "dilations": dilations(data.image_size),
            "mean": list(subject.statistics.mean),
            "std": list(subject.statistics.std),
        },
        "data": {
            "name": data[SOURCES[data.source]],
            "split": split_name,
            "images": len(split.images),
            "sha256": _hash_images(split),
        },
        "masks": {"images": int(split.has_mask.sum()), "sha256": _hash_masks(split)},
        "noise": {key: config.eval[key] for key in ("sigma", "trials", "seed")},
        "versions": report.versions(subject.packages),
    }


def _hash_images(split: "Split") -> str:
    """Hashes the names and classes of the images, in whatever order they are."""
    labels = split.images.labels()
    lines = sorted(b"%d %s" % pair for pair in zip(labels, split.images.file_names, strict=True))
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def _hash_masks(split: "Split") -> str:
    """Hashes the masks of the images of both kinds, in the order of the images' names."""
    digest, masks = hashlib.sha256(), split.masks
    # Row -1, of an image without record, has none.
    has = {kind: np.append(masks.has(kind), False)[split.rows] for kind in KINDS}
    for index in tqdm(np.argsort(split.images.file_names), desc="masks", leave=False, disable=None):
        row = int(split.rows[index])
        for kind in (kind for kind in KINDS if has[kind][index]):
            grid = masks.encoding == "grid"
            digest.update(masks.grids(kind, [row]).tobytes() if grid else masks.png(kind, row))
    return digest.hexdigest()


def differing_keys(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Returns the keys of provenance that differ, but for versions."""
    groups = sorted((first.keys() | second.keys()) - {"versions"})
    return [
        f"{group}.{key}"
        for group in groups
        for key in sorted(first.get(group, {}).keys() | second.get(group, {}).keys())
        if first.get(group, {}).get(key) != second.get(group, {}).get(key)
    ]


def incomparable_keys(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Returns what has to be the same for the metrics of two evaluations to compare, but differs.

    Models and their preprocessing may be of any kind.

    Args:
      first: content of a results.json.
      second: another.

    Returns:
      keys of provenance, and "PROTOCOL.parameters.KEY" of the protocols that both have.
    """
    found = [
        key
        for key in differing_keys(first["provenance"], second["provenance"])
        if not key.startswith(("model.", "preprocessing."))
    ]
    for protocol in (name for name in first["protocols"] if name in second["protocols"]):
        pair = [results["protocols"][protocol].get("parameters", {}) for results in (first, second)]
        found += differing_keys(*({f"{protocol}.parameters": own} for own in pair))
    return found


def save_outcomes(path: Path, measured: Measured) -> None:
    """Writes each image's `id`, `label`, and NAME/correct and NAME/number, as a .npz file."""
    arrays = {"id": measured.id, "label": measured.label}
    for name, outcome in measured.outcomes.items():
        arrays |= {f"{name}/correct": outcome.correct, f"{name}/number": outcome.number}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_outcomes(path: Path) -> Measured:
    """Reads what an evaluation kept of each image.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
        names = [key.removesuffix("/correct") for key in arrays if key.endswith("/correct")]
        outcomes = {n: Outcome(arrays[f"{n}/correct"], arrays[f"{n}/number"]) for n in names}
        return Measured(arrays["id"], arrays["label"], np.ones(len(arrays["id"])), outcomes)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}; evaluate again") from error

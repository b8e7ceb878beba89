"""Which selected features are core: what workers answered."""

import csv
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from corm_jax.errors import UserError, lookup
from corm_jax.files import replacing
from corm_jax.masks.annotations import COLUMNS, Votes, check_selected, read_annotations, weights
from corm_jax.masks.building.selection import Feature

Weights = dict[tuple[int, int], tuple[float, float]]
CORE, SPURIOUS = (1.0, 0.0), (0.0, 1.0)


def feature_weights(
    config: ConfigDict, features: Sequence[Feature], class_names: Sequence[str], path: Path | None
) -> Weights:
    """Returns the weights of each feature in (core, spurious) masks by (class, channel).

    Args:
      config: of the build.
      features: the selected ones.
      class_names: of all classes: what the annotations call WordNet IDs.
      path: of the annotations, None if there are none.

    Raises:
      UserError: if there are no annotations and `config.annotations.without` does not say what
        to do, or if they do not cover a feature; says what to do.
    """
    settings = config.annotations
    if path is None:
        if lookup(WITHOUT, settings.without, "config.annotations.without"):
            return {(feature.class_index, feature.feature): CORE for feature in features}
        raise UserError(
            "the features are selected, nobody has said which are core: annotate them (python -m "
            "corm_jax.masks annotate WORKDIR), then run this again with "
            "--config.annotations.path=CSV; or take all as core: --config.annotations.without=core"
        )
    votes = read_annotations(path, settings.answers_per_pair)
    pairs = {f: (class_names[f.class_index], f.feature) for f in features}
    check_selected(path, votes, pairs.values())
    return {
        (f.class_index, f.feature): _weights(votes[pair], settings) for f, pair in pairs.items()
    }


WITHOUT = {"error": False, "core": True}


def annotations_path(config: ConfigDict, workdir: Path) -> Path | None:
    """Returns the path of a build's annotations, in the demo its own; None if there are none."""
    if config.annotations.path:
        return Path(config.annotations.path).expanduser()
    return workdir / "annotations.csv" if config.encoder.kind == "demo" else None


def _weights(votes: Votes, settings: ConfigDict) -> tuple[float, float]:
    if settings.weighted:
        return weights(votes)
    return SPURIOUS if votes.is_spurious(settings.votes) else CORE


def write_answers(
    path: Path,
    features: Sequence[Feature],
    answers: Sequence[str],
    class_names: Sequence[str],
    *,
    workers: int,
    reason: str,
) -> None:
    """Writes the same answers of several workers in the CSV that Salient ImageNet released.

    Args:
      path: the file.
      features: the features.
      answers: to each.
      class_names: of all classes.
      workers: their number.
      reason: theirs.
    """
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for feature, answer in zip(features, answers, strict=True):
            name = class_names[feature.class_index]
            place = (name, feature.class_index, feature.feature, feature.rank)
            for worker in range(workers):
                writer.writerow((f"mask-{worker}", *place, answer, 5, reason))

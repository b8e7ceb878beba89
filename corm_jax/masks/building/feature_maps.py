"""The maps of annotated features that a build leaves, for protocols that take one at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from corm_jax.errors import UserError
from corm_jax.files import read_json
from corm_jax.masks.building import kinds
from corm_jax.masks.building.selection import Feature, read_features
from corm_jax.masks.checks import KINDS
from corm_jax.masks.records import MaskRecords, load_array

NEEDED = ("config.json", "features.json", "masks", "feature_maps")


@dataclass(frozen=True)
class FeatureMaps:
    """What a build with `config.masks.feature_maps` found of its features.

    Attributes:
      workdir: of the build.
      class_names: of all classes, in the order of `Feature.class_index`.
      features: the annotated ones, by class, the most important first.
      kinds: of each feature, one of `KINDS`, by the majority of its answers.
      file_names: bytes [R], of the images that have maps.
      frame: of the maps, see `corm_jax.masks.records`.
      row: int64 [n], the image of each map, ascending.
      feature: int32 [n], its channel.
      maps: uint8 [n, h, w], neural activation maps times 255, memory-mapped.
    """

    workdir: Path
    class_names: tuple[str, ...]
    features: Sequence[Feature]
    kinds: Sequence[str]
    file_names: np.ndarray
    frame: dict[str, Any]
    row: np.ndarray
    feature: np.ndarray
    maps: np.ndarray


def read(workdir: Path) -> FeatureMaps:
    """Reads the feature maps of a build, and whether annotators call each feature core.

    Where they weigh the masks (`config.annotations.weighted`), a feature is of one kind all the
    same: that of `config.annotations.votes`.

    Args:
      workdir: of `python -m corm_jax.masks build`.

    Raises:
      UserError: if something is missing or damaged; names it, and the command that makes it.
    """
    missing = [name for name in NEEDED if not (workdir / name).exists()]
    again = (
        f"python -m corm_jax.masks build --workdir={workdir} --config.masks.feature_maps=True, "
        "with the other options of the build"
    )
    if missing:
        raise UserError(f"{workdir} lacks {', '.join(missing)}; make them: {again}")
    features, class_names = read_features(workdir / "features.json")
    config = ConfigDict(read_json(workdir / "config.json"))
    config.annotations.weighted = False
    annotations = kinds.annotations_path(config, workdir)
    if annotations is not None and not annotations.is_file():
        raise UserError(
            f"{annotations}, which says what the features of {workdir} are, is missing; put it "
            f"back, or name another: {again} and --config.annotations.path=CSV"
        )
    weights = kinds.feature_weights(config, features, class_names, annotations)
    records, path = MaskRecords.open(workdir / "masks"), workdir / "feature_maps"
    try:
        row = np.load(path / "row.npy")
        feature = load_array(path / "feature.npy", (len(row),), np.int32)
        maps = load_array(path / "maps.npy", (len(row), *records.size), np.uint8)
    except (OSError, ValueError, EOFError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, then {again}") from error
    if not len(row) or row[0] < 0 or row[-1] >= len(records.file_names) or (np.diff(row) < 0).any():
        raise UserError(f"{path} is not of {workdir}/masks; remove it, then {again}")
    return FeatureMaps(
        workdir=workdir,
        class_names=class_names,
        features=features,
        kinds=[KINDS[int(np.argmax(weights[f.class_index, f.feature]))] for f in features],
        file_names=records.file_names,
        frame=records.frame,
        row=row,
        feature=np.asarray(feature),
        maps=maps,
    )

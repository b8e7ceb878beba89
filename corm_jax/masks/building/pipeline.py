"""The whole way from an encoder and images to mask records, in a workdir.

    store/<split>/       what the encoder saw; see `corm_jax.masks.building.store`
    config.json          of the latest build here, with the path of the encoder
    features.json        the selected features of each class
    annotations.csv      of the demo: the answers of the true masks
    masks/               the mask records
    feature_maps/        on request, the map of each feature; see `assemble.write_feature_maps`
    report.md            what was built;  masks.png  a sample of it;  build.json  its numbers

Each step finds what a build before has finished, and goes on with what is left.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from corm_jax.config import flatten
from corm_jax.errors import UserError
from corm_jax.files import read_json, write_json
from corm_jax.masks.building import assemble, compare, demo, kinds, report, selection
from corm_jax.masks.building.config import check_config
from corm_jax.masks.building.encoder import Encoder, open_encoder
from corm_jax.masks.building.scan import Scanner
from corm_jax.masks.building.selection import Feature
from corm_jax.masks.building.splits import Splits, open_splits
from corm_jax.masks.building.store import FeatureStore, read_header
from corm_jax.masks.records import MaskRecords
from corm_jax.sharding import create_mesh

logger = logging.getLogger(__name__)

ELSEWHERE = ("encoder.path", "data.data_dir", "data.folder", "annotations.path")  # names of places


@dataclass(frozen=True)
class Setup:
    """What a build works with."""

    config: ConfigDict
    workdir: Path
    splits: Splits
    encoder: Encoder
    scanner: Scanner

    def store_path(self, split: str) -> Path:
        """Returns the directory of a split's store."""
        return self.workdir / "store" / split


def build(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Builds mask records, or goes on with what the workdir holds.

    Args:
      config: as `corm_jax.masks.building.config.base_config` describes it.
      workdir: see the module's docstring.

    Returns:
      the content of build.json; None on all hosts but the first, which help to encode.

    Raises:
      UserError: for what the user can put right.
    """
    check_config(config)
    mesh = create_mesh(-1, 1, jax.local_devices())
    if config.scan.batch_size % mesh.size:
        raise UserError(
            f"config.scan.batch_size={config.scan.batch_size} is not a multiple of the "
            f"{mesh.size} devices"
        )
    splits = open_splits(config)
    config = demo.with_encoder(config, workdir)
    write_json(workdir / "config.json", config.to_dict())
    encoder = open_encoder(config, splits.class_names, mesh)
    setup = Setup(config, workdir, splits, encoder, Scanner(encoder, config, mesh))
    counts = _scan(setup)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("every shard is written")
        if jax.process_index():
            return None
    features = _select(setup)
    weights = kinds.feature_weights(
        config, features, splits.class_names, _annotations(setup, features)
    )
    plans = _plans(setup, features, weights)
    counts["encoded_again"] = _scan_more(setup, plans)
    _write(setup, plans, weights)
    return _report(setup, features, weights, counts)


def _scan(setup: Setup) -> dict[str, Any]:
    host = (jax.process_index(), jax.process_count())
    since, encoded = time.perf_counter(), 0
    for split, images in setup.splits.images.items():
        encoded += setup.scanner.scan(setup.store_path(split), images, host=host)
    return {"encoded": encoded, "seconds": time.perf_counter() - since}


def _select(setup: Setup) -> list[Feature]:
    settings = setup.config.features
    features = selection.select(
        FeatureStore(setup.store_path("train")),
        setup.encoder.head_weight,
        features_per_class=settings.per_class,
        by=settings.by,
    )
    names = setup.splits.class_names
    selection.write_features(setup.workdir / "features.json", features, names)
    return features


def _annotations(setup: Setup, features: Sequence[Feature]) -> Path | None:
    """Returns the path of the annotations; the demo's are made first."""
    path = kinds.annotations_path(setup.config, setup.workdir)
    if path is not None and not setup.config.annotations.path:
        store = FeatureStore(setup.store_path("train"))
        demo.annotate(setup.config, path, store, features, setup.splits)
    return path


def _plans(
    setup: Setup, features: Sequence[Feature], weights: kinds.Weights
) -> dict[str, assemble.Plan]:
    settings = setup.config.masks
    top = {"train": settings.top_k, "validation": 0}
    return {
        split: assemble.plan(
            FeatureStore(setup.store_path(split)), features, weights, top_k=top[split]
        )
        for split in setup.splits.images
    }


def _scan_more(setup: Setup, plans: Mapping[str, assemble.Plan]) -> int:
    """Encodes images again where a selected feature was no candidate; returns how many."""
    for split, plan in plans.items():
        path = setup.store_path(split)
        has_map = FeatureStore(path).has_map(plan.images, plan.features)
        pairs = plan.pairs()[~has_map]
        setup.scanner.scan_more(path, setup.splits.images[split], pairs)
    return sum(FeatureStore(setup.store_path(split)).encoded_again for split in plans)


def _write(setup: Setup, plans: Mapping[str, assemble.Plan], weights: kinds.Weights) -> None:
    path, config = setup.workdir / "masks", setup.config
    stores = {split: FeatureStore(setup.store_path(split)) for split in plans}
    feature_maps = setup.workdir / "feature_maps"
    origin = _origin(setup, weights)
    if path.exists():
        if read_json(path / "masks.json").get("origin") != origin:
            raise UserError(
                f"{path} was built with other features, annotations or options; remove it to build "
                "it again, or choose another --workdir"
            )
        logger.info("%s is built already", path)
    else:
        shutil.rmtree(feature_maps, ignore_errors=True)  # of masks that were removed
        assemble.write_records(
            path,
            stores,
            plans,
            frame=assemble.frame_of(setup.encoder.image_size, setup.encoder.center_crop_share),
            source=f"built by corm_jax from a {config.encoder.kind} encoder",
            origin=origin,
        )
    if config.masks.feature_maps and not feature_maps.exists():
        assemble.write_feature_maps(feature_maps, stores, plans)


def _origin(setup: Setup, weights: kinds.Weights) -> dict[str, Any]:
    """Returns what decides the records: equal origins have equal records."""
    options = flatten(setup.config.to_dict())
    for key in (*ELSEWHERE, "masks.feature_maps"):
        del options[key]
    headers = [read_header(setup.store_path(split)) for split in setup.splits.images]
    content = json.dumps([headers, [[*pair, *weight] for pair, weight in weights.items()]])
    fingerprint = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
    return {"format": "build", "options": options, "fingerprint": fingerprint}


def _report(
    setup: Setup,
    features: Sequence[Feature],
    weights: kinds.Weights,
    counts: dict[str, Any],
) -> dict[str, Any]:
    records = MaskRecords.open(setup.workdir / "masks")
    stores = {split: FeatureStore(setup.store_path(split)) for split in setup.splits.images}
    numbers = report.numbers(records, stores, setup.splits.class_names, features, weights) | counts
    own = setup.splits.masks
    if own is not None and own.frame["type"] == "full":
        names = {split: store.file_names for split, store in stores.items()}
        share = setup.encoder.center_crop_share
        numbers["iou"] = compare.intersection_over_union(records, own, names, share)
    write_json(setup.workdir / "build.json", numbers)
    report.draw(setup.workdir / "masks.png", records, setup.splits.images)
    report.write(setup.workdir / "report.md", setup.config, numbers)
    return numbers

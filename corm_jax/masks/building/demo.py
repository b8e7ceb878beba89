"""What the demo does in a user's place: trains an encoder, and answers about its features."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from corm_jax.config import refuse_other_config
from corm_jax.errors import UserError
from corm_jax.masks.building import compare, kinds
from corm_jax.masks.building.selection import Feature
from corm_jax.masks.building.splits import Splits
from corm_jax.masks.building.store import FeatureStore
from corm_jax.recipes import resnet
from corm_jax.train import train

logger = logging.getLogger(__name__)

REASON = "played by the true masks"


def with_encoder(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Trains the demo's encoder, unless it is there; returns the config with its path.

    A plain run of the main job. Other kinds of encoders are the user's: then nothing happens.
    """
    if config.encoder.kind != "demo":
        return config
    path = Path(config.encoder.path or workdir / "encoder").expanduser()
    run = encoder_config(config)
    refuse_other_config(run, path)
    if not (path / "results.json").exists():
        logger.info("training the encoder (once): %s", path)
        train(run, path)
    config = config.copy_and_resolve_references()
    config.encoder.path = str(path)
    return config


def encoder_config(config: ConfigDict) -> ConfigDict:
    """Returns the training config of the demo's encoder: ERM, which takes no notice of masks.

    Its last map has 6 x 6 cells at 48 pixels: `resnet10_nano`, with one more stage, has 3 x 3.
    """
    run = resnet("demo", objective="erm")
    run.model.name = "resnet8_nano"
    run.data.tfds_name = config.encoder.demo_data
    run.data.data_dir = config.data.data_dir
    run.data.image_size = config.encoder.image_size
    return run


def annotate(
    config: ConfigDict,
    path: Path,
    store: FeatureStore,
    features: Sequence[Feature],
    splits: Splits,
) -> None:
    """Writes the answers of the true masks as annotations, all workers agreeing.

    Raises:
      UserError: if the data has no masks of its own.
    """
    if splits.masks is None:
        raise UserError(
            "config.encoder.kind=demo needs data with masks of its own, which answer in the "
            "workers' place; name your encoder: --config.encoder.kind=run --config.encoder.path=DIR"
        )
    share = config.encoder.center_crop_share
    kinds.write_answers(
        path,
        features,
        compare.answers_of_masks(store, features, splits.masks, share),
        splits.class_names,
        workers=config.annotations.answers_per_pair,
        reason=REASON,
    )

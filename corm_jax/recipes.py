"""Recipes: what the variants of `configs/` change in the base config.

The same for every objective, so that a comparison of two objectives is one of objectives alone.
"""

from ml_collections import ConfigDict

from corm_jax.config import base_config
from corm_jax.errors import lookup

IMAGENET_EPOCHS = 90
IMAGENET_TRAINING_IMAGES = 1_281_167


def vit(argument: str, *, objective: str) -> ConfigDict:
    """Returns the config of a vision transformer.

    Args:
      argument: "demo", "imagenet" or "folder"; another objective may follow after a comma.
      objective: the objective if none follows.

    Raises:
      UserError: for an unknown variant or objective; names the nearest one.
    """
    config, variant = _base(argument, objective)
    if variant == "imagenet":
        # As timm's and big_vision's ViT-S/16 from scratch on ImageNet, 90 epochs.
        config.model.name = "vit_small_patch16_224"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup_steps = 10_000
        config.optimizer.weight_decay = 0.1
    return config


def resnet(argument: str, *, objective: str) -> ConfigDict:
    """Returns the config of a residual network; see `vit`."""
    config, variant = _base(argument, objective)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.model.name = "resnet10_nano"
    if variant == "imagenet":
        # As Goyal et al. 2017: 0.1 for each 256 images, 90 epochs.
        config.model.name = "resnet50"
        config.optimizer.learning_rate = 0.4
        config.optimizer.warmup_steps = 6_250
        config.optimizer.weight_decay = 5e-5
        config.optimizer.clip_norm = 0.0
    return config


def finetune(argument: str) -> ConfigDict:
    """Returns the config of a last-layer method, on a model that `config.init` names.

    Args:
      argument: "VARIANT,METHOD": demo, imagenet or folder, and a key of `METHODS`.

    Raises:
      UserError: for an unknown variant or method; names the nearest one.
    """
    variant, _, method = argument.partition(",")
    objective, fresh_head = lookup(METHODS, method, "method")
    config = vit(f"{variant},{objective}", objective=objective)
    config.fresh_head = fresh_head
    config.optimizer.trainable = "head"
    config.train.steps = FINETUNE_STEPS[variant]
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 0
    return config


# Method -> (objective, whether the head starts from random weights).
METHODS = {"dfr": ("dfr", True), "core_head": ("corm", False)}
FINETUNE_STEPS = {"demo": 300, "folder": 300, "imagenet": 1_250}  # an epoch of ImageNet


def _base(argument: str, objective: str) -> tuple[ConfigDict, str]:
    variant, _, other = argument.partition(",")
    config = base_config(other or objective)
    lookup(VARIANTS, variant, "variant")(config)
    return config, variant


def _demo(config: ConfigDict) -> None:
    del config  # the base config is the demo's


def _folder(config: ConfigDict) -> None:
    config.data.source = "folder"
    config.data.counterfactual_split = ""
    config.data.center_crop_share = 0.9
    config.data.crop_area_min = 0.3
    config.data.image_size = 64
    config.train.steps = 600


def _imagenet(config: ConfigDict) -> None:
    config.model.dtype = "bfloat16"
    config.data.tfds_name = "imagenet2012"
    config.data.data_dir = ""
    config.data.counterfactual_split = ""
    config.data.masks = "masks/salient_imagenet"
    config.data.image_size = 224
    config.data.crop_area_min = 0.25
    config.data.center_crop_share = 0.875
    config.train.batch_size = 1024
    config.train.steps = IMAGENET_EPOCHS * IMAGENET_TRAINING_IMAGES // config.train.batch_size
    config.train.label_smoothing = 0.1
    config.train.log_every = 100
    config.eval.batch_size = 512
    config.eval.every = 5_000
    config.eval.subset = 5_120
    config.checkpoint.every = 2_500


VARIANTS = {"demo": _demo, "folder": _folder, "imagenet": _imagenet}

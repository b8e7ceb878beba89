"""The config of a build: every key with its meaning and the demo's value, and variants."""

from ml_collections import ConfigDict

from corm_jax.config import AT_LEAST_ONE, NOT_NEGATIVE, Bound, flatten
from corm_jax.errors import UserError, lookup


def base_config() -> ConfigDict:
    """Returns all keys, with the demo's values."""
    config = ConfigDict()

    config.encoder = encoder = ConfigDict()
    encoder.kind = "demo"  # demo, run (of corm_jax.main) or robustness (a checkpoint of MadryLab's)
    encoder.path = ""  # the run's workdir, or the checkpoint; "" in the demo: WORKDIR/encoder
    # The demo's encoder sees the same drawings with less telling backgrounds: one that leans on
    # backgrounds alone has few features on objects.
    encoder.demo_data = "spurious_shapes/rate_80"
    encoder.image_size = 48  # height and width of its input in pixels
    encoder.center_crop_share = 1.0  # central square's side over the image's shorter side

    config.data = data = ConfigDict()
    data.source = "tfds"  # tfds or folder
    data.tfds_name = "spurious_shapes/rate_95"  # data set, or data set/config
    data.data_dir = "data"  # of prepared TFDS data; "" is $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.folder = ""  # for source=folder: holds images/<class>/<id>.jpg
    data.train_split = "train"
    data.validation_split = "validation"
    data.validation_share = 0.2  # for source=folder: of each class
    data.bad_images = "error"  # undecodable images: error, or skip and count

    config.scan = scan = ConfigDict()
    scan.batch_size = 100  # over the devices of one host
    scan.shard_batches = 20  # batches in a file; a killed build repeats unfinished files alone
    scan.candidates = 64  # channels whose maps are kept of each image, 0 for all

    config.features = features = ConfigDict()
    features.per_class = 5  # the most important ones
    features.by = "prediction"  # importance over the images of a prediction, or of a label

    config.annotations = annotations = ConfigDict()
    annotations.path = ""  # CSV of answers; "" in the demo: the true masks answer
    annotations.answers_per_pair = 5  # of each (class, feature)
    annotations.votes = 3  # for separate_object or background, that make a feature spurious
    annotations.weighted = False  # weigh maps by the share of answers instead of a majority
    annotations.without = "error"  # no CSV: error, or core (every feature is)

    config.masks = masks = ConfigDict()
    # Training images of a (class, feature): those that activate it most; 0 for all of the class.
    masks.top_k = 0
    masks.validation = True  # masks of all validation images as well
    masks.feature_maps = False  # also each feature's own map, in WORKDIR/feature_maps
    return config


def build_config(variant: str) -> ConfigDict:
    """Returns the config of a variant: demo, imagenet or folder.

    Raises:
      UserError: for another variant; names the nearest one.
    """
    config = base_config()
    lookup(VARIANTS, variant, "variant")(config)
    return config


def _demo(config: ConfigDict) -> None:
    del config  # the base config is the demo's


def _imagenet(config: ConfigDict) -> None:
    config.encoder.kind = "robustness"
    config.encoder.image_size = 224
    config.encoder.center_crop_share = 0.875
    config.data.tfds_name = "imagenet2012"
    config.data.data_dir = ""
    config.data.bad_images = "skip"
    config.scan.batch_size = 256
    config.scan.shard_batches = 8
    config.masks.top_k = 260  # a fifth of a class (project choice); Salient ImageNet has 65


def _folder(config: ConfigDict) -> None:
    config.encoder.kind = "run"
    config.encoder.image_size = 64
    config.encoder.center_crop_share = 0.9
    config.data.source = "folder"


VARIANTS = {"demo": _demo, "imagenet": _imagenet, "folder": _folder}
BOUNDS: dict[str, Bound] = {
    "encoder.image_size": Bound(8),
    "encoder.center_crop_share": Bound(0, 1, open_low=True),
    "data.validation_share": Bound(0, 0.99, open_low=True),
    "scan.batch_size": AT_LEAST_ONE,
    "scan.shard_batches": AT_LEAST_ONE,
    "scan.candidates": NOT_NEGATIVE,
    "features.per_class": AT_LEAST_ONE,
    "annotations.answers_per_pair": AT_LEAST_ONE,
    "annotations.votes": AT_LEAST_ONE,
    "masks.top_k": NOT_NEGATIVE,
}
CHOICES = {
    "data.bad_images": ("error", "skip"),
    "features.by": ("prediction", "label"),
    "annotations.without": ("error", "core"),
}


def check_config(config: ConfigDict) -> None:
    """Refuses a config that cannot run, before anything is loaded or written.

    Raises:
      UserError: names the key and the way out.
    """
    flat = flatten(config.to_dict())
    for key, bound in BOUNDS.items():
        if not bound.holds(flat[key]):
            raise UserError(f"config.{key}={flat[key]} must be {bound}")
    for key, valid in CHOICES.items():
        lookup(dict.fromkeys(valid), flat[key], f"config.{key}")
    if config.annotations.votes > config.annotations.answers_per_pair:
        raise UserError(
            f"config.annotations.votes={config.annotations.votes} is above "
            f"config.annotations.answers_per_pair={config.annotations.answers_per_pair}"
        )

"""The config: every key with its meaning and the demo's value, and checks of a whole config."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from corm_jax.buckets import is_remote
from corm_jax.errors import UserError, lookup
from corm_jax.files import local_path, read_json
from corm_jax.losses.controls import CONTROLS
from corm_jax.losses.presets import check_objective, preset
from corm_jax.losses.terms import build
from corm_jax.models import check_image_size, create_model
from corm_jax.profiling import parse_steps
from corm_jax.state import create_optimizer

MAX_KEYS = 60


def base_config(objective: str) -> ConfigDict:
    """Returns all keys, with the demo's values; `configs/` sets what differs.

    Args:
      objective: a key of `corm_jax.losses.presets.PRESETS`.
    """
    config = ConfigDict()
    config.seed = 0  # of initialisation, order, augmentation and noise
    config.objective = objective  # a preset's name
    # The preset's terms: label -> {term, weight, the term's parameters}. The weight goes linearly
    # from initial_weight to weight over transition_steps steps; with 0 of them it is constant.
    config.terms = ConfigDict(preset(objective))
    config.control = "none"  # wrong masks in training: a key of corm_jax.losses.controls.CONTROLS

    config.init = ""  # workdir of a finished run, or file of weights, to start from; "" is random
    config.fresh_head = False  # a random classifier even where init's fits

    config.model = ConfigDict()
    config.model.name = "vit_nano_patch8_48"  # a key of corm_jax.models.MODELS
    config.model.dtype = "float32"  # of computation: float32 or bfloat16
    config.model.remat = False  # less memory for a third more computation: blocks computed twice
    config.model.head_bias = objective != "cfce"  # as in timm; cfce takes a head without
    config.model.global_pool = ""  # of ViTs: token or avg; "" for what the name stands for

    config.data = data = ConfigDict()
    data.source = "tfds"  # tfds or folder
    data.tfds_name = "spurious_shapes/rate_95"  # data set, or data set/config
    # "" is $TFDS_DATA_DIR or ~/tensorflow_datasets.
    data.data_dir = "data"  # of prepared TFDS data; may be gs://BUCKET/DIR
    data.folder = ""  # for source=folder: holds images/<class>/<id>.jpg, masks/<class>/<id>.png
    data.masks = ""  # directory of mask records; "" is the data set's own
    data.validation_masks = ""  # of the validation images alone; "" is data.masks
    data.train_split = "train"
    data.validation_split = "validation"
    data.counterfactual_split = "counterfactual"  # "" if there is none
    data.validation_share = 0.2  # for source=folder: of each class
    data.selection_share = 0.0  # of each class's training images: set aside to select models by
    data.image_size = 48  # height and width in pixels
    data.crop_area_min = 0.6  # share of the image's area that a training crop takes
    data.crop_area_max = 1.0
    data.flip = True  # mirror half of the training images
    data.center_crop_share = 1.0  # evaluation: central square's side over the shorter side
    data.bad_images = "error"  # undecodable images: error, or skip and count
    data.max_unmatched_records = 0.01  # largest share of mask records that find no image

    config.train = train = ConfigDict()
    train.steps = 700
    train.batch_size = 64  # over all devices
    train.microbatches = 1  # that a step takes its batch in, for less memory; see corm_jax/steps.py
    train.label_smoothing = 0.0
    train.ema_decay = 0.0  # of averaged parameters, which are then evaluated; 0 for none
    train.log_every = 50  # steps

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw or sgd (Nesterov)
    optimizer.learning_rate = 2e-3  # peak: linear warm-up, then a cosine to 0
    optimizer.warmup_steps = train.get_ref("steps") // 12  # follows train.steps unless given
    optimizer.momentum = 0.9  # sgd's momentum, adamw's b1
    optimizer.b2 = 0.999  # adamw's
    optimizer.weight_decay = 0.05  # of kernels
    optimizer.clip_norm = 1.0  # of the whole gradient, 0 for none
    optimizer.trainable = "all"  # or head: the classifier alone, all else stays as it is
    optimizer.layer_decay = 1.0  # factor on the learning rate for each layer away from the head

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices along the data axis, -1 for all that fsdp leaves
    config.mesh.fsdp = 1  # devices along which parameters are sharded as well

    config.eval = evaluation = ConfigDict()
    evaluation.every = 300  # steps, on a subset of the validation split
    evaluation.subset = 240  # images
    evaluation.batch_size = 120  # over all devices
    evaluation.trials = 10  # draws of noise for each image
    evaluation.sigma = 0.25  # standard deviation of the noise, pixels in [0, 1]
    evaluation.seed = 0  # of the noise: the same for every model
    evaluation.extra = ""  # more TFDS sets, comma-separated: clean accuracy on their test split

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 300  # steps
    config.checkpoint.best = "core"  # metric whose best checkpoint is kept beside the latest

    config.watch = ConfigDict()
    config.watch.stall_minutes = 30.0  # that a step, batch, save or compilation may take; 0: any
    config.profile = ConfigDict()
    config.profile.steps = ""  # FIRST:LAST, such as 10:15: traced into the workdir's profile/
    return config


def extra_sets(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names in `config.eval.extra`, each once."""
    names = (name.strip() for name in config.eval.extra.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def number_of_keys(config: ConfigDict) -> int:
    """Returns how many leaf keys a config has; `terms` counts as one."""
    return len(flatten({**config.to_dict(), "terms": 0}))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": value} for nested dicts."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@dataclasses.dataclass(frozen=True)
class Bound:
    """Values that a numeric key may have: low <= value <= high, or low < value if `open_low`."""

    low: float
    high: float = float("inf")
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Returns whether the value is within; NaN is not."""
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"{'>' if self.open_low else '>='} {self.low:g}"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"


POSITIVE = Bound(0, open_low=True)
AT_LEAST_ONE = Bound(1)
NOT_NEGATIVE = Bound(0)
SHARE = Bound(0, 1)
BOUNDS: dict[str, Bound] = {
    "seed": Bound(0, 2**31 - 1),
    "data.validation_share": Bound(0, 0.99, open_low=True),
    "data.selection_share": Bound(0, 0.99),
    "data.image_size": Bound(8),
    "data.crop_area_min": Bound(0, 1, open_low=True),
    "data.crop_area_max": Bound(0, 1, open_low=True),
    "data.center_crop_share": Bound(0, 1, open_low=True),
    "data.max_unmatched_records": SHARE,
    "train.steps": AT_LEAST_ONE,
    "train.batch_size": AT_LEAST_ONE,
    "train.microbatches": AT_LEAST_ONE,
    "train.label_smoothing": Bound(0, 0.99),
    "train.ema_decay": Bound(0, 1 - 1e-9),
    "train.log_every": AT_LEAST_ONE,
    "optimizer.learning_rate": POSITIVE,
    "optimizer.warmup_steps": NOT_NEGATIVE,
    "optimizer.momentum": Bound(0, 1 - 1e-9),
    "optimizer.b2": Bound(0, 1 - 1e-9),
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip_norm": NOT_NEGATIVE,
    "optimizer.layer_decay": Bound(0, 1, open_low=True),
    "eval.every": AT_LEAST_ONE,
    "eval.subset": NOT_NEGATIVE,
    "eval.batch_size": AT_LEAST_ONE,
    "eval.trials": AT_LEAST_ONE,
    "eval.sigma": NOT_NEGATIVE,
    "eval.seed": Bound(0, 2**31 - 1),
    "checkpoint.every": AT_LEAST_ONE,
    "watch.stall_minutes": NOT_NEGATIVE,
}
# Of files, where they are not "".
PATHS = ("init", "data.data_dir", "data.folder", "data.masks", "data.validation_masks")
MAY_BE_REMOTE = ("init", "data.data_dir")
# Of keys that change nothing of what a run computes.
OBSERVING = ("watch.stall_minutes", "profile.steps")
# Of the numbers in a term, where it has them.
TERM_BOUNDS: dict[str, Bound] = {
    "weight": NOT_NEGATIVE,
    "initial_weight": NOT_NEGATIVE,
    "transition_steps": NOT_NEGATIVE,
    "sigma": NOT_NEGATIVE,
    "sigma_high": NOT_NEGATIVE,
    "probability": SHARE,
    "patch": AT_LEAST_ONE,
    "radius": NOT_NEGATIVE,
    "step_size": NOT_NEGATIVE,
    "steps": AT_LEAST_ONE,
}


def check_config(config: ConfigDict) -> None:
    """Refuses a config that cannot run, before anything is loaded or written.

    Raises:
      UserError: names the key and the way out.
    """
    flat = flatten(config.to_dict())
    missing = [key for key in BOUNDS if key not in flat]
    if missing:
        raise UserError(
            f"the config has no {missing[0]}: it is not one for training, such as "
            "configs/vit_corm.py"
        )
    for key, bound in BOUNDS.items():
        if not bound.holds(flat[key]):
            raise UserError(f"config.{key}={flat[key]} must be {bound}")
    if flat["data.crop_area_min"] > flat["data.crop_area_max"]:
        raise UserError("config.data.crop_area_min is above config.data.crop_area_max")
    for label, term in config.terms.items():
        for key, bound in TERM_BOUNDS.items():
            if key in term and not bound.holds(term[key]):
                raise UserError(f"config.terms.{label}.{key}={term[key]} must be {bound}")
        shuffles = term.get("corruption") == "patch_shuffle"
        if shuffles and flat["data.image_size"] % term["patch"]:
            raise UserError(
                f"config.terms.{label}.patch={term['patch']} does not divide "
                f"config.data.image_size={flat['data.image_size']}"
            )
    for key in PATHS:
        if not (key in MAY_BE_REMOTE and is_remote(flat[key])):
            local_path(flat[key], f"config.{key}")
    parse_steps(config.profile.steps)
    lookup(CONTROLS, config.control, "control")
    build(config.terms.to_dict())
    check_objective(config.objective, config.terms.to_dict())
    model = _check_model(config)
    check_image_size(config.model.name, config.data.image_size)
    create_optimizer(config, model)
    if config.optimizer.trainable != "all" and not config.init:
        raise UserError(
            f"config.optimizer.trainable={config.optimizer.trainable} keeps the rest of the model "
            "as it starts, which takes a trained one: --config.init=DIR, the workdir of a finished "
            "run such as runs/demo/vit_erm, or a file of weights"
        )
    if config.checkpoint.best not in BEST_METRICS:
        raise UserError(
            f"config.checkpoint.best={config.checkpoint.best!r}; valid: {', '.join(BEST_METRICS)}"
        )


BEST_METRICS = ("clean", "core", "rcs")


def _check_model(config: ConfigDict) -> nn.Module:
    """Returns the model; refuses for a term of cfce one whose logits are no sums of maps."""
    name, head_bias = config.model.name, config.model.head_bias
    model = create_model(
        name,
        num_classes=2,
        dtype=config.model.dtype,
        head_bias=head_bias,
        global_pool=config.model.global_pool,
    )
    for label in (label for label, term in config.terms.items() if term.term == "cfce"):
        if head_bias:
            raise UserError(
                f"config.terms.{label}: cfce needs a head without bias; set "
                "config.model.head_bias=False"
            )
        if not _gives_class_maps(model, config.data.image_size):
            raise UserError(
                f"config.terms.{label}: cfce needs a head on the mean of maps, which {name} does "
                "not have; set config.model.name to a ResNet, or for a vision transformer "
                "config.model.global_pool=avg"
            )
    return model


def _gives_class_maps(model: nn.Module, image_size: int) -> bool:
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    model = model.clone(dtype=jnp.float32)  # Flax's BatchNorm mixes dtypes in evaluation
    forward = partial(model.init_with_output, jax.random.key(0), train=False)
    (_, intermediates), _ = jax.eval_shape(forward, images)
    return "class_maps" in intermediates


def refuse_other_config(config: ConfigDict, workdir: Path) -> None:
    """Refuses a workdir that holds checkpoints or results of another config.

    Keys that are only `OBSERVING` may differ.

    Raises:
      UserError: names the keys that differ.
    """
    held = [*(workdir / "checkpoints").glob("[0-9]*"), *workdir.glob("results.json")]
    if not held:
        return  # stopped before it had anything to keep
    old, new = flatten(read_json(workdir / "config.json")), flatten(config.to_dict())
    keys = (old.keys() | new.keys()) - set(OBSERVING)
    differing = sorted(k for k in keys if old.get(k) != new.get(k))
    if differing:
        changes = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differing)
        raise UserError(
            f"{workdir} holds a run of another config ({changes}); choose another --workdir, "
            "or remove that one to start over"
        )

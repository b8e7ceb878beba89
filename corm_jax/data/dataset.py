"""From the config to images joined with masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax import distributed
from corm_jax.buckets import is_remote
from corm_jax.config import extra_sets
from corm_jax.data import folder, join, order, pipeline, prepare, preprocess, tfds_source
from corm_jax.data.set_aside import set_aside
from corm_jax.errors import UserError, lookup
from corm_jax.files import data_path
from corm_jax.masks.records import MaskRecords, MaskSource


@dataclass(frozen=True)
class Dataset:
    """A data set's splits, joined with their masks.

    Attributes:
      train: training images.
      validation: images that metrics with masks are measured on.
      selection: images of the training split that are set aside to select models by, or None.
      extra: images that clean accuracy alone is measured on, by name: "counterfactual", whose
        backgrounds are independent of the class, and the data sets of `config.eval.extra`.
      class_names: names of the classes, in the order of the labels.
      counts: what the join counted, for the results.
    """

    train: pipeline.Split
    validation: pipeline.Split
    selection: pipeline.Split | None
    extra: dict[str, pipeline.Split]
    class_names: tuple[str, ...]
    counts: dict[str, int]


def open_dataset(config: ConfigDict) -> Dataset:
    """Opens the data that `config.data` and `config.eval.extra` name.

    Raises:
      UserError: if it is not there, its masks belong to other images, or an extra set has other
        classes; says what to do.
    """
    dataset = lookup(SOURCES, config.data.source, "config.data.source")(config)
    extra = {name: _open_extra(config, name, dataset) for name in extra_sets(config)}
    dataset = replace(dataset, extra=dataset.extra | extra)
    if share := config.data.selection_share:
        train, selection = set_aside(dataset.train, share)
        if not (train.has_mask.any() and selection.has_mask.any()):
            raise UserError(
                f"config.data.selection_share={share} leaves no image with a core mask to train "
                "on, or none to select by; choose another share"
            )
        dataset = replace(dataset, train=train, selection=selection)
    return dataset


def _open_extra(config: ConfigDict, name: str, dataset: Dataset) -> pipeline.Split:
    images = tfds_source.TfdsImages(tfds_source.find_prepared(name, _data_dir(config)), EXTRA_SPLIT)
    if images.class_names != dataset.class_names:
        raise UserError(
            f"config.eval.extra: the {len(images.class_names)} classes of {name} are not the "
            f"{len(dataset.class_names)} of the training images; name sets of the same classes"
        )
    no_rows = np.full(len(images), -1)
    return pipeline.Split(images, dataset.train.masks, no_rows, no_rows >= 0)


def _data_dir(config: ConfigDict) -> Path:
    given = str(config.data.data_dir or tfds_source.default_data_dir())
    return data_path(given, "config.data.data_dir")


def _open_folder(config: ConfigDict) -> Dataset:
    if not config.data.folder:
        raise UserError("name your folder: --config.data.folder=DIR; " + folder.LAYOUT)
    path = Path(config.data.folder).expanduser()
    train, validation, masks = folder.open_folder(path, config.data.validation_share)
    if config.data.masks:
        masks = MaskRecords.open(Path(config.data.masks).expanduser())
    return _join(config, {"train": train, "validation": validation}, masks)


def _open_tfds(config: ConfigDict) -> Dataset:
    data = config.data
    data_dir = _data_dir(config)
    if data.tfds_name.partition("/")[0] == prepare.EMBEDDED:
        if is_remote(data_dir):
            raise UserError(
                f"config.data.data_dir={data_dir}: {data.tfds_name} is drawn on this machine; name "
                "a directory here"
            )
        directory, own_masks = prepare.prepare_embedded(data.tfds_name, data_dir)
    else:
        directory, own_masks = tfds_source.find_prepared(data.tfds_name, data_dir), None
    masks = Path(data.masks).expanduser() if data.masks else own_masks
    if masks is None:
        raise UserError(
            f"{data.tfds_name} has no masks of its own; name some: --config.data.masks=DIR"
        )
    names = {"train": data.train_split, "validation": data.validation_split}
    if data.counterfactual_split:
        names["counterfactual"] = data.counterfactual_split
    splits = {key: tfds_source.TfdsImages(directory, name) for key, name in names.items()}
    others = set(tfds_source.split_names(directory)) - set(names.values())
    unused = [tfds_source.TfdsImages(directory, name) for name in sorted(others)]
    return _join(config, splits, MaskRecords.open(masks), unused)


SOURCES = {"tfds": _open_tfds, "folder": _open_folder}
EXTRA_SPLIT = "test"  # the one split of TFDS's imagenet_v2, imagenet_a and imagenet_r


def _join(
    config: ConfigDict,
    images: dict[str, pipeline.ImageSource],
    masks: MaskSource,
    unused: Sequence[pipeline.ImageSource] = (),
) -> Dataset:
    """Joins all images with their records; records may name images of unused splits too."""
    everything = np.concatenate([s.file_names for s in (*images.values(), *unused)])

    def joined_with(masks: MaskSource, where: str) -> tuple[join.Join, dict[str, pipeline.Split]]:
        joined = join.join(everything, masks.file_names)
        join.check(joined, masks.file_names, config.data.max_unmatched_records, where)
        ends = np.cumsum([len(source) for source in images.values()])
        rows = np.split(joined.rows[: ends[-1]], ends[:-1])
        has_core = np.append(masks.has("core"), False)  # row -1: no record
        return joined, {
            name: pipeline.Split(source, masks, part, has_core[part])
            for (name, source), part in zip(images.items(), rows, strict=True)
        }

    where = config.data.masks or "the data set's own masks"
    joined, splits = joined_with(masks, where)
    masks_of = {"train": where, "validation": where}
    if other := config.data.validation_masks:
        masks_of["validation"] = other
        records = MaskRecords.open(Path(other).expanduser())
        splits["validation"] = joined_with(records, other)[1]["validation"]
    for name, where in masks_of.items():
        if not splits[name].has_mask.any():
            raise UserError(
                f"no image of the {name} split has a core mask ({where}); config.data.masks and "
                "config.data.validation_masks name the records"
            )
    return Dataset(
        train=splits.pop("train"),
        validation=splits.pop("validation"),
        selection=None,
        extra=splits,
        class_names=images["train"].class_names,
        counts={
            "images": len(everything),
            "images_without_record": joined.images_without_record,
            "records_without_image": joined.records_without_image,
        },
    )


def training_loader(
    config: ConfigDict, split: pipeline.Split, shard: tuple[int, int]
) -> pipeline.Loader:
    """Returns the loader of training batches for host `shard` = (index, count)."""
    data = config.data
    return pipeline.Loader(
        split=split,
        select=order.training_order(
            len(split.images), seed=config.seed, batch_size=config.train.batch_size
        ),
        operations=preprocess.training(
            split.masks,
            image_size=data.image_size,
            area=(data.crop_area_min, data.crop_area_max),
            flip=data.flip,
            seed=config.seed,
        ),
        bad_images=lookup(BAD_IMAGES, data.bad_images, "config.data.bad_images"),
        shard=shard,
    )


def evaluation_loader(
    config: ConfigDict, split: pipeline.Split, shard: tuple[int, int], size: int = 0
) -> tuple[pipeline.Loader, int]:
    """Returns (loader, number of batches) of an evaluation.

    Args:
      config: the run's config.
      split: what to evaluate on.
      shard: (index, count) of this host.
      size: evaluate on a fixed subset of this size, 0 for all images.
    """
    indices = order.subset(len(split.images), size)
    loader = pipeline.Loader(
        split=split,
        select=order.evaluation_order(indices, batch_size=config.eval.batch_size),
        operations=preprocess.evaluation(
            split.masks, image_size=config.data.image_size, share=config.data.center_crop_share
        ),
        bad_images=lookup(BAD_IMAGES, config.data.bad_images, "config.data.bad_images"),
        shard=shard,
    )
    return loader, -(-len(indices) // config.eval.batch_size)


def read_labels(name: str, images: pipeline.ImageSource, indices: Sequence[int]) -> np.ndarray:
    """Returns the labels of images, int64 [len(indices)]; reads them.

    Args:
      name: of the split, for the progress bar.
      images: the split's.
      indices: of the images.
    """
    labels = np.empty(len(indices), np.int64)
    hidden = None if distributed.is_first() else True  # None: in a log file
    with tqdm(total=len(indices), desc=f"classes of {name}", leave=False, disable=hidden) as bar:
        for start in range(0, len(indices), 256):
            part = indices[start : start + 256]
            labels[start : start + len(part)] = [label for _, label in images.read(part)]
            bar.update(len(part))
    return labels


def occurring_classes(name: str, split: pipeline.Split) -> np.ndarray:
    """Returns bool [C]: the classes that images of a split have; reads all of them.

    Args:
      name: of the split, for the progress bar.
      split: the images.
    """
    occurs = np.zeros(len(split.images.class_names), bool)
    occurs[read_labels(name, split.images, range(len(split.images)))] = True
    return occurs


BAD_IMAGES = {choice: choice for choice in ("skip", "error")}

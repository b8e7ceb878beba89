"""Preparing data sets: the embedded one with its mask records, and TFDS's own."""

import contextlib
import io
import logging
import sys
import tarfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from corm_jax.data.spurious_shapes import SpuriousShapes
from corm_jax.data.tfds_source import TfdsImages, check_features, split_names
from corm_jax.errors import UserError, lookup, nearest
from corm_jax.files import locked, reporting
from corm_jax.masks.writer import MaskWriter
from corm_jax.recipes import IMAGENET_TRAINING_IMAGES

logger = logging.getLogger(__name__)

EMBEDDED = "spurious_shapes"
SAMPLED_EVERY = 1000
PUBLISHED_COUNTS = {
    "imagenet2012": {"train": IMAGENET_TRAINING_IMAGES, "validation": 50_000},
    "imagenet_v2": {"test": 10_000},
    "imagenet_a": {"test": 7_500},
    "imagenet_r": {"test": 30_000},
}


def prepare_embedded(name: str, data_dir: Path) -> tuple[Path, Path]:
    """Draws `spurious_shapes` and writes its mask records, unless both are there.

    Args:
      name: "spurious_shapes/<config>".
      data_dir: where TFDS data sets are.

    Returns:
      (directory of the data set, directory of its mask records).

    Raises:
      UserError: if there is no such config.
    """
    config = name.partition("/")[2]
    lookup(SpuriousShapes.builder_configs, config, f"config of {EMBEDDED}")
    directory = Path(_embedded_builder(config, data_dir).data_dir)
    masks = directory / "mask_records"
    if not masks.exists():
        with locked(data_dir / f".{EMBEDDED}.lock"):
            # Another process may have been drawing while this one waited.
            builder = _embedded_builder(config, data_dir)
            if not (directory / "dataset_info.json").exists():
                logger.info("drawing %s (once)", builder.info.full_name)
                _draw(builder)
            if not masks.exists():
                _write_masks(builder, masks)
    return directory, masks


def _embedded_builder(config: str, data_dir: Path) -> SpuriousShapes:
    return SpuriousShapes(config=config, data_dir=data_dir, file_format="array_record")


def _draw(builder: SpuriousShapes) -> None:
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # hundreds of lines in a log file
    # TFDS says "Downloading" of what is drawn here.
    with reporting(Path(builder.data_dir)), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def _write_masks(builder: tfds.core.DatasetBuilder, path: Path) -> None:
    skip = {"core_mask": tfds.decode.SkipDecoding(), "image": tfds.decode.SkipDecoding()}
    with MaskWriter(path, encoding="png", source=builder.info.full_name) as writer:
        for split in sorted(builder.info.splits):
            for record in builder.as_data_source(split, decoders=skip):
                writer.add(record["file_name"].decode(), core=record["core_mask"])


def prepare(name: str, data_dir: Path, manual_dir: Path | None) -> None:
    """Prepares a data set as array_record files, checks it, and prints a summary.

    What is prepared already is only checked.

    Args:
      name: TFDS's name of the data set, "data_set" or "data_set/config".
      data_dir: where TFDS data sets are.
      manual_dir: where the archives are that TFDS cannot, or need not, download.

    Raises:
      UserError: if there is no such data set, it cannot be used, archives are missing, or the
        prepared data does not check.
    """
    if name.partition("/")[0] == EMBEDDED:
        directory, _ = prepare_embedded(name, data_dir)
    else:
        builder = _tfds_builder(name, data_dir)
        check_features(builder)
        directory = Path(builder.data_dir)
        if not (directory / "dataset_info.json").exists():
            _check_archives(builder, manual_dir)
            _generate(builder, manual_dir)
    for split in split_names(directory):
        _check_split(name, split, TfdsImages(directory, split))
    print(f"prepared in {directory}")


def _generate(builder: tfds.core.DatasetBuilder, manual_dir: Path | None) -> None:
    """Writes a data set from its archives; downloads those that are not in `manual_dir`."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # hundreds of lines in a log file
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        with reporting(Path(builder.data_dir)):
            _download_and_prepare(builder, config)
    except tarfile.TarError as error:
        raise UserError(
            f"an archive in {manual_dir} is damaged ({error}); download it again"
        ) from error
    except tfds.download.download_manager.NonMatchingChecksumError as error:
        what = str(error).partition(":\n")[0]  # which file, and which address it stands for
        raise UserError(f"{what}: damaged, or another file; download it again") from error


def _download_and_prepare(
    builder: tfds.core.DatasetBuilder, config: tfds.download.DownloadConfig
) -> None:
    try:
        builder.download_and_prepare(download_config=config)
    except (OSError, tfds.download.DownloadError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the operating system's, not the network's
        archives = ", ".join(
            f"{info.filename} ({url})" for url, info in (builder.url_infos or {}).items()
        )
        raise UserError(
            f"{builder.name} cannot be prepared: {' '.join(str(error).split())}. Without network, "
            f"put what it downloads into a directory and name that with --manual_dir: {archives}"
        ) from error


def _check_split(name: str, split: str, images: TfdsImages) -> None:
    """Checks names, number and a sample of a split's images; prints its summary line."""
    if len(np.unique(images.file_names)) != len(images):
        raise UserError(f"{name}: split {split} has two images of one file name")
    damaged = []
    sample = range(0, len(images), SAMPLED_EVERY)
    for index in tqdm(sample, desc=f"checking {split}", leave=False, disable=None):
        ((encoded, _),) = images.read([index])
        if not _decodes(encoded):
            damaged.append(images.describe(index))
    if damaged:
        logger.warning(
            "%s: %d of %d images looked at cannot be decoded, such as %s; training leaves them out "
            "with --config.data.bad_images=skip",
            *(split, len(damaged), len(sample), damaged[0]),
        )
    expected = PUBLISHED_COUNTS.get(name.partition("/")[0], {}).get(split, len(images))
    if len(images) != expected:
        logger.warning("%s: %d images, where %s has %d", split, len(images), name, expected)
    print(f"{name} {split}: {len(images)} images, {len(images.class_names)} classes")


def _decodes(encoded: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
            image.load()
    except (OSError, SyntaxError):  # Pillow raises the latter for damaged PNG files
        return False
    return True


def _tfds_builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    data_set, _, config = name.partition("/")
    known = tfds.list_builders(with_community_datasets=False)
    if data_set not in known:
        raise UserError(
            f"unknown data set {data_set!r}{nearest(data_set, [*known, EMBEDDED])}; "
            f"valid: those of tensorflow_datasets, and {EMBEDDED}"
        )
    configs = tfds.builder_cls(data_set).builder_configs
    if config or configs:
        lookup(configs, config, f"config of {data_set}")
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")


def _check_archives(builder: tfds.core.DatasetBuilder, manual_dir: Path | None) -> None:
    instructions = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    if not instructions:
        return
    if manual_dir is None:
        raise UserError(f"{builder.name} needs --manual_dir=DIR: {instructions}")
    if not manual_dir.is_dir():
        raise UserError(f"--manual_dir={manual_dir} is not a directory: {instructions}")
    if builder.name == "imagenet2012":
        for archive in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
            if not (manual_dir / archive).is_file():
                raise UserError(f"{manual_dir / archive} is missing; get it from image-net.org")

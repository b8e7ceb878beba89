"""Images of a TFDS data set that is prepared as array_record files, read by index."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tqdm import tqdm

from corm_jax.data.tf_import import tf
from corm_jax.errors import UserError, one_line
from corm_jax.files import replacing

logger = logging.getLogger(__name__)

DEMO_HINT = (
    "To see corm_jax at work without it: python -m corm_jax.main --config=configs/vit_corm.py"
)


class TfdsImages:
    """One split of a prepared TFDS data set; an `ImageSource`."""

    def __init__(self, directory: Path, split: str) -> None:
        """Opens a split.

        Args:
          directory: the prepared data set's directory, as `find_prepared` returns it.
          split: name of the split.

        Raises:
          UserError: if there is no such split, or its examples lack image, label or file_name.
        """
        builder = tfds.builder_from_directory(directory)
        self._where = f"{builder.info.full_name}:{split}"
        if split not in builder.info.splits:
            valid = ", ".join(sorted(builder.info.splits))
            raise UserError(f"{builder.info.full_name} has no split {split!r}; valid: {valid}")
        check_features(builder)
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"{directory} is stored as {builder.info.file_format.value}, which cannot be read "
                "by index; convert it once: python -m tensorflow_datasets.scripts.convert_format "
                f"--dataset_dir={directory} --out_file_format=array_record "
                f"--out_path=OTHER_DATA_DIR{directory}"
            )
        features = builder.info.features
        self.class_names = tuple(features["label"].names)
        # TFDS's own parsing of an example costs a tenth of the time of the whole image path, and
        # images stay encoded here: the pipeline decodes only the crop that it needs.
        self._records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        self._directory, self._split = directory, split
        self.file_names = self._load(
            "file_names", lambda fields: fields["file_name"].bytes_list.value[0], np.bytes_
        )

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
        """Returns (encoded image, label) of each index.

        Raises:
          UserError: if the files are cut short or damaged.
        """
        return [
            (fields["image"].bytes_list.value[0], fields["label"].int64_list.value[0])
            for fields in self._fields(list(map(int, indices)))
        ]

    def labels(self) -> np.ndarray:
        """Returns the label of every image, int32 [N]; the first time it reads all records."""
        return self._load("labels", lambda fields: fields["label"].int64_list.value[0], np.int32)

    def describe(self, index: int) -> str:
        """Returns the data set, split and file name of an image, for messages."""
        return f"{self._where} {os.fsdecode(self.file_names[index])}"

    def _fields(self, indices: list[int]) -> Iterator[Mapping[str, tf.train.Feature]]:
        try:
            for record in self._records.__getitems__(indices):
                if not record:  # what is read beyond the end of a file
                    raise RuntimeError("a record is empty")
                yield tf.train.Example.FromString(record).features.feature
        except (
            OSError,
            RuntimeError,
            DecodeError,
        ) as error:  # array_record has no class of its own
            reason = one_line(error, 200)
            raise UserError(
                f"the records of {self._where} in {self._directory} cannot be read ({reason}); "
                "they are cut short or damaged: prepare the data set again there"
            ) from error

    def _load(
        self, what: str, field: Callable[[Mapping[str, tf.train.Feature]], Any], dtype: type
    ) -> np.ndarray:
        """Returns a field of all records; it is read once and kept beside them."""
        path = self._directory / f"{what}-{self._split}.npy"
        if path.exists():
            with path.open("rb") as file:
                kept = np.load(file, allow_pickle=False)
            if len(kept) == len(self._records):
                return kept
        values, count = [], len(self._records)
        name = f"indexing {self._split}"
        with tqdm(total=count, desc=name, delay=2, leave=False, disable=None) as bar:
            for start in range(0, count, 256):
                stop = min(start + 256, count)
                values += [field(fields) for fields in self._fields(list(range(start, stop)))]
                bar.update(stop - start)
        found = np.array(values, dtype)
        try:
            with replacing(path) as temporary:
                np.save(temporary, found)
        except UserError as error:
            # Read-only data can be used all the same.
            logger.warning(
                "%s: all records of %s are read again at every start", error, self._split
            )
        return found


def default_data_dir() -> Path:
    """Returns where TFDS keeps prepared data: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def check_features(builder: tfds.core.DatasetBuilder) -> None:
    """Raises UserError if a data set's examples lack image, label or file_name."""
    missing = {"image", "label", "file_name"} - set(builder.info.features)
    if missing:
        raise UserError(
            f"{builder.info.full_name} cannot be used: its examples lack "
            f"{', '.join(sorted(missing))}"
        )


def split_names(directory: Path) -> list[str]:
    """Returns the names of a prepared data set's splits."""
    return sorted(tfds.builder_from_directory(directory).info.splits)


def find_prepared(name: str, data_dir: Path) -> Path:
    """Finds the newest prepared version of a data set.

    Args:
      name: "data_set" or "data_set/config".
      data_dir: where TFDS data sets are.

    Raises:
      UserError: if it is not there; says how to prepare it.
    """
    versions = [
        path.parent
        for path in (data_dir / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        raise UserError(not_prepared_message(name, data_dir))
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def not_prepared_message(name: str, data_dir: Path) -> str:
    """Returns what to do when a data set is not prepared."""
    lines = [f"{name} is not prepared under {data_dir} (config.data.data_dir)."]
    command = f"  python -m corm_jax.data prepare --dataset={name} --data_dir={data_dir}"
    if name == "imagenet2012":
        lines += [
            "Put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (https://image-net.org, after "
            "signing in) into one directory, MANUAL_DIR, then prepare it once (about 300 GB):",
            f"{command} --manual_dir=MANUAL_DIR",
        ]
    else:
        lines += [
            "Prepare it once; what TFDS cannot download goes into a --manual_dir=DIR:",
            command,
        ]
    return "\n".join([*lines, DEMO_HINT])

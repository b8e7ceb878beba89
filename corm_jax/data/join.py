"""The join of images with mask records, by file name."""

import logging
import os
from dataclasses import dataclass

import numpy as np

from corm_jax.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Join:
    """Which record belongs to which image.

    Attributes:
      rows: int64 [images]: the record of each image, -1 where there is none.
      images_without_record: how many images have no record.
      records_without_image: how many records name no image.
    """

    rows: np.ndarray
    images_without_record: int
    records_without_image: int


def join(images: np.ndarray, records: np.ndarray) -> Join:
    """Joins file names of images with those of records, in any order of either.

    Args:
      images: bytes [images], file names.
      records: bytes [records], unique file names.
    """
    if not len(records):
        return Join(np.full(len(images), -1), len(images), 0)
    order = np.argsort(records)
    ordered = records[order]  # a sorted copy is searched in half the time of a `sorter`
    found = np.minimum(np.searchsorted(ordered, images), len(records) - 1)
    rows = np.where(ordered[found] == images, order[found], -1)
    unmatched = int((~_matched(rows, len(records))).sum())
    return Join(rows, int((rows < 0).sum()), unmatched)


def _matched(rows: np.ndarray, records: int) -> np.ndarray:
    """Returns bool [records]: which records have an image."""
    matched = np.zeros(records, bool)
    matched[rows[rows >= 0]] = True
    return matched


def check(joined: Join, records: np.ndarray, max_unmatched: float, where: str) -> None:
    """Logs the counts of a join and refuses records that belong to other images.

    Args:
      joined: the join of *all* images that the records may name.
      records: bytes [records], file names.
      max_unmatched: largest share of records in [0, 1] that may find no image.
      where: where the records are, for the message.

    Raises:
      UserError: if more than that share of records finds no image.
    """
    logger.info(
        "masks: %d images have a record, %d images have none, %d records find no image",
        len(joined.rows) - joined.images_without_record,
        joined.images_without_record,
        joined.records_without_image,
    )
    share = joined.records_without_image / max(1, len(records))
    if share > max_unmatched:
        matched = _matched(joined.rows, len(records))
        example = os.fsdecode(records[np.argmin(matched)])
        raise UserError(
            f"{where}: {joined.records_without_image} of {len(records)} mask records "
            f"({share:.1%}) find no image, such as {example!r}; at most {max_unmatched:.1%} may "
            "(config.data.max_unmatched_records). Are they masks of another data set?"
        )

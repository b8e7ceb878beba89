"""How many records each class has, and of which kinds."""

import numpy as np

from corm_jax.masks.classes import NO_CLASS, group
from corm_jax.masks.records import KINDS, MaskRecords

SHOWN_CLASSES = 5


def coverage(records: MaskRecords) -> str:
    """Returns a table of records and of masks of each kind: all, and min, median, max a class.

    Below it, the classes without a core mask. The class of a record is what its file name tells.
    """
    classes, numbers = group(records.file_names)
    counts = {"records": _count(numbers, len(classes))}
    for kind in KINDS:
        counts[f"with {kind}"] = _count(numbers[records.has(kind)], len(classes))
    lines = ["".join([f"{'':<16}", *(f"{name:>16}" for name in counts)])]
    for label, summary in (
        ("all", np.sum),
        ("a class, min", np.min),
        ("median", np.median),
        ("max", np.max),
    ):
        if len(classes):
            cells = (f"{summary(values):>16,.0f}" for values in counts.values())
            lines.append("".join([f"{label:<16}", *cells]))
    without = [classes[i] for i in np.flatnonzero(counts["with core"] == 0)]
    example = ", ".join(without[:SHOWN_CLASSES]) + (", ..." if without[SHOWN_CLASSES:] else "")
    unclassed = int((numbers == classes.index(NO_CLASS)).sum()) if NO_CLASS in classes else 0
    if unclassed:
        lines.append(f"{unclassed} records tell no class; they are counted as one")
    lines.append(
        f"{len(classes)} classes; without a core mask: {len(without)}"
        + (f" ({example})" if without else "")
    )
    return "\n".join(lines)


def _count(numbers: np.ndarray, classes: int) -> np.ndarray:
    """Returns int64 [classes]: how often each class's number occurs."""
    return np.bincount(numbers, minlength=classes)

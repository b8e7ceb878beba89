"""How many records each class has, and of which kinds."""

import numpy as np

from corm_jax.masks.classes import NO_CLASS, group
from corm_jax.masks.records import KINDS, MaskRecords

SHOWN = 5  # classes without a core mask


def coverage(records: MaskRecords) -> str:
    """Returns a table of records and of masks of each kind: all, and min, median, max a class.

    Below it, the classes without a core mask. The class of a record is what its file name tells.
    """
    classes, numbers = group(records.file_names)
    named = [i for i, name in enumerate(classes) if name != NO_CLASS]
    every = np.ones(len(numbers), bool)
    chosen = {"records": every, **{f"with {kind}": records.has(kind) for kind in KINDS}}
    counts = {
        label: np.bincount(numbers[rows], minlength=len(classes)) for label, rows in chosen.items()
    }
    lines = [
        "".join([f"{'':<16}", *(f"{label:>16}" for label in counts)]),
        _line("all", [int(count.sum()) for count in counts.values()]),
    ]
    if named:
        for label, summary in (("min", np.min), ("median", np.median), ("max", np.max)):
            lines.append(_line(f"a class, {label}", [summary(c[named]) for c in counts.values()]))
    without = [classes[i] for i in named if not counts["with core"][i]]
    shown = ", ".join(without[:SHOWN]) + (", ..." if len(without) > SHOWN else "")
    lines.append(
        f"{len(named):,} classes, {len(without):,} of them without a core mask"
        + (f": {shown}" if without else "")
    )
    if unnamed := len(numbers) - int(counts["records"][named].sum()):
        lines.append(f"{NO_CLASS}: {unnamed:,} records")
    return "\n".join(lines)


def _line(label: str, values: list[float]) -> str:
    return "".join([f"{label:<16}", *(f"{value:>16,.0f}" for value in values)])

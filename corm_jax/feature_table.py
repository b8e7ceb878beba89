"""What noise on each annotated feature costs, class by class."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from corm_jax.data.features import NO_KIND, ClassFeatures
from corm_jax.files import replacing
from corm_jax.masks.checks import KINDS
from corm_jax.protocols.types import Measured

FILE_NAME = "single_feature.csv"
COLUMNS = (
    *("class", "feature", "rank", "kind", "images"),
    *("accuracy", "accuracy_under_noise", "drop"),
)


def write_feature_table(
    path: Path, measured: Measured, features: ClassFeatures, class_names: Sequence[str]
) -> None:
    """Writes a row for each annotated feature of each class, in the order of `features`.

    `images` are those of the class that show the feature, `accuracy` that on them without noise,
    `drop` accuracy - accuracy_under_noise; the three are empty where there are no images.

    Args:
      path: the CSV file.
      measured: by the `single_feature` protocol.
      features: of each class.
      class_names: in the order of the labels.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        clean = np.asarray(measured.outcomes["single_clean"].correct, np.float64)
        for label, slot in np.argwhere(features.kind != NO_KIND):
            noisy = measured.outcomes[f"single_feature_{slot}"]
            shown = (measured.label == label) & (noisy.number > 0)
            numbers: tuple[float | str, ...] = ("", "", "")
            if shown.any():
                before = clean[shown].mean()
                after = np.asarray(noisy.correct, np.float64)[shown].mean()
                numbers = tuple(round(float(value), 6) for value in (before, after, before - after))
            about = (features.channel[label, slot], features.rank[label, slot])
            kind = KINDS[features.kind[label, slot]]
            writer.writerow((class_names[label], *about, kind, int(shown.sum()), *numbers))

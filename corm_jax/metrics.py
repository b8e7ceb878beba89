"""Metrics: sums and counts that merge across batches and hosts, divided once."""

from typing import Any

import clu.metrics
import flax
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Outcome:
    """How often each image was classified right.

    Attributes:
      correct: float32 [B], weighted number of correct predictions.
      number: float32 [B], weighted number of predictions: 0 for what does not count.
    """

    correct: Any
    number: Any


@flax.struct.dataclass
class ClassAccuracy(clu.metrics.Metric):
    """Accuracy by class.

    Attributes:
      correct: float32 [C], weighted number of correct predictions of each class; with weights of
        0 and 1 exact up to 2^24 a class.
      count: float32 [C], weighted number of predictions of each class.
    """

    correct: jax.Array
    count: jax.Array

    @classmethod
    def from_model_output(
        cls, *, outcome: Outcome, label: jax.Array, num_classes: int
    ) -> "ClassAccuracy":
        """Counts images.

        Args:
          outcome: of each.
          label: int32 [B].
          num_classes: C.
        """
        correct, count = (
            jax.ops.segment_sum(jnp.asarray(values), jnp.asarray(label), num_classes)
            for values in (outcome.correct, outcome.number)
        )
        return cls(correct=correct, count=count)

    def merge(self, other: "ClassAccuracy") -> "ClassAccuracy":
        """Adds the counts of another part of the data."""
        return ClassAccuracy(self.correct + other.correct, self.count + other.count)

    def compute(self) -> float:
        """Returns the mean over classes of their accuracies; classes without images are left out.

        NaN if there are no images at all.
        """
        correct, count = np.asarray(self.correct, np.float64), np.asarray(self.count, np.float64)
        present = count > 0
        if not present.any():
            return float("nan")
        return float(np.mean(correct[present] / count[present]))

    def compute_plain(self) -> float:
        """Returns the accuracy over all images, whatever their class; NaN if there are none."""
        total = float(np.asarray(self.count, np.float64).sum())
        return float(np.asarray(self.correct, np.float64).sum()) / total if total else float("nan")

    def number(self) -> float:
        """Returns the weighted number of predictions."""
        return float(np.asarray(self.count, np.float64).sum())


def relative_core_sensitivity(core: Any, spurious: Any) -> np.ndarray:
    """Returns RCS = (core - spurious) / (2 min(a, 1 - a)), a = (core + spurious) / 2.

    Args:
      core: accuracy in [0, 1] under noise outside the core, float64 [...].
      spurious: accuracy in [0, 1] under noise on the core, float64 [...].

    Returns:
      float64 [...] in [-1, 1]: positive where the model relies on the core more; 0 where a is 0 or
      1; NaN where an accuracy is (nothing was measured).

    Source: Singla, Moayeri and Feizi 2022 (arXiv:2203.15566).
    """
    core, spurious = np.asarray(core, np.float64), np.asarray(spurious, np.float64)
    mean = (core + spurious) / 2
    room = np.minimum(mean, 1 - mean)
    return np.divide(core - spurious, 2 * room, out=np.zeros(room.shape), where=room != 0)

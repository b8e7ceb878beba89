"""Which examples a step takes: a function of seed and step alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EVALUATION_SUBSET_SEED = 0


@dataclass(frozen=True)
class Selection:
    """The examples of one batch.

    Attributes:
      indices: int64 [B], which images.
      positions: int64 [B], the place of each in the endless sequence of epochs.
      weights: float32 [B], 0 for padding.
    """

    indices: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


def training_order(count: int, *, seed: int, batch_size: int) -> Callable[[int], Selection]:
    """Returns step -> examples: every epoch another permutation, batches run across epochs."""
    permutations: dict[int, np.ndarray] = {}

    def permutation(epoch: int) -> np.ndarray:
        if epoch not in permutations:
            for old in [e for e in permutations if e < epoch - 1]:
                del permutations[old]
            permutations[epoch] = np.random.default_rng((seed, epoch)).permutation(count)
        return permutations[epoch]

    def select(step: int) -> Selection:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs, offsets = np.divmod(positions, count)
        indices = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = permutation(int(epoch))[offsets[chosen]]
        return Selection(indices, positions, np.ones(batch_size, np.float32))

    return select


def evaluation_order(indices: np.ndarray, *, batch_size: int) -> Callable[[int], Selection]:
    """Returns step -> examples: each index once, the last batch padded with weight 0."""

    def select(step: int) -> Selection:
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        weights = (positions < len(indices)).astype(np.float32)
        return Selection(indices[np.minimum(positions, len(indices) - 1)], positions, weights)

    return select


def subset(count: int, size: int) -> np.ndarray:
    """Returns `size` indices below `count`, the same ones every time; all of them if size is 0."""
    if not 0 < size < count:
        return np.arange(count)
    return np.random.default_rng(EVALUATION_SUBSET_SEED).permutation(count)[:size]


def partners(labels: np.ndarray, ids: np.ndarray, *, seed: int) -> np.ndarray:
    """Returns int64 [N], for each example the index of one of another class.

    Drawn uniformly and independently by seed and example alone; an example is its own partner where
    all are of one class.

    Args:
      labels: int [N], classes.
      ids: int [N], what tells the examples apart.
      seed: of the draws.
    """
    by_class = np.argsort(labels, kind="stable")
    first, last = (np.searchsorted(labels[by_class], labels, side) for side in ("left", "right"))
    others = len(labels) - (last - first)
    found = np.arange(len(labels))
    for index in np.flatnonzero(others):
        # A place in the sorted list without the example's own class.
        place = np.random.default_rng((seed, ids[index])).integers(others[index])
        skipped = last[index] - first[index] if place >= first[index] else 0
        found[index] = by_class[place + skipped]
    return found

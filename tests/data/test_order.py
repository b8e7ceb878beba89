"""Which examples a step takes."""

import itertools

import numpy as np
import pytest

from corm_jax.data.order import evaluation_order, subset, training_order


def indices(seed: int, count: int, steps: range, batch_size: int = 4) -> np.ndarray:
    select = training_order(count, seed=seed, batch_size=batch_size)
    return np.concatenate([select(step).indices for step in steps])


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (8, 4), (3, 7)])
def test_every_epoch_is_another_permutation(count: int, batch_size: int) -> None:
    drawn = indices(0, count, range(3 * count), batch_size)[: 12 * count // 4]
    epochs = drawn.reshape(-1, count)
    assert len(epochs) == 3
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    assert any((a != b).any() for a, b in itertools.pairwise(epochs))


def test_seeds_give_other_orders() -> None:
    assert indices(0, 50, range(10)).tolist() == indices(0, 50, range(10)).tolist()
    assert indices(0, 50, range(10)).tolist() != indices(1, 50, range(10)).tolist()


def test_any_step_can_be_asked_for_first() -> None:
    """As after a resume, and back to an epoch that was forgotten."""
    select = training_order(7, seed=0, batch_size=4)
    in_order = [select(step).indices.tolist() for step in range(20)]
    for step in (19, 0, 11, 3):
        assert select(step).indices.tolist() == in_order[step]
        fresh = training_order(7, seed=0, batch_size=4)
        assert fresh(step).indices.tolist() == in_order[step]


def test_positions_count_examples_over_epochs() -> None:
    chosen = training_order(5, seed=0, batch_size=4)(3)
    assert chosen.positions.tolist() == [12, 13, 14, 15]
    assert chosen.weights.tolist() == [1, 1, 1, 1]


def test_evaluation_takes_each_index_once_and_pads_with_weight_0() -> None:
    chosen = [evaluation_order(np.array([5, 3, 8, 1, 9]), batch_size=3)(step) for step in range(2)]
    assert np.concatenate([c.indices for c in chosen])[:5].tolist() == [5, 3, 8, 1, 9]
    assert np.concatenate([c.weights for c in chosen]).tolist() == [1, 1, 1, 1, 1, 0]


def test_a_subset_is_fixed_and_without_repetition() -> None:
    chosen = subset(100, 10)
    assert chosen.tolist() == subset(100, 10).tolist()
    assert len(set(chosen.tolist())) == 10
    assert chosen.max() < 100


@pytest.mark.parametrize("size", [0, 7, 8])
def test_a_subset_of_everything_is_everything(size: int) -> None:
    assert subset(7, size).tolist() == list(range(7))

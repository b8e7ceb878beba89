"""Which examples a step takes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


COUNTS = st.integers(1, 60)
BATCHES = st.integers(1, 40)
STEPS = st.integers(0, 500)


@settings(deadline=None)
@given(count=COUNTS, batch_size=BATCHES, epoch=st.integers(0, 100), seed=st.integers(0, 2**31 - 1))
def test_any_epoch_takes_each_image_once(
    count: int, batch_size: int, epoch: int, seed: int
) -> None:
    select = training_order(count, seed=seed, batch_size=batch_size)
    first, last = epoch * count, (epoch + 1) * count - 1
    chosen = [select(step) for step in range(first // batch_size, last // batch_size + 1)]
    positions = np.concatenate([c.positions for c in chosen])
    taken = np.concatenate([c.indices for c in chosen])[positions // count == epoch]
    assert sorted(taken) == list(range(count))


@settings(deadline=None)
@given(count=COUNTS, batch_size=BATCHES, steps=st.lists(STEPS, min_size=1, max_size=6))
def test_a_step_depends_on_no_step_before_it(count: int, batch_size: int, steps: list[int]) -> None:
    select = training_order(count, seed=3, batch_size=batch_size)
    for step in steps:
        alone = training_order(count, seed=3, batch_size=batch_size)(step)
        assert select(step).indices.tolist() == alone.indices.tolist()
        assert alone.positions.tolist() == [step * batch_size + i for i in range(batch_size)]


@settings(deadline=None)
@given(
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=60, unique=True),
    batch_size=BATCHES,
)
def test_an_evaluation_counts_each_index_once_at_any_batch_size(
    indices: list[int], batch_size: int
) -> None:
    select = evaluation_order(np.array(indices), batch_size=batch_size)
    chosen = [select(step) for step in range(-(-len(indices) // batch_size))]
    assert {len(c.indices) for c in chosen} == {batch_size}
    counted = np.concatenate([c.indices[c.weights == 1] for c in chosen])
    assert counted.tolist() == indices

"""Resampling on the device, against loops over pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corm_jax.masks.resample import area_average, resample, validity

SIZE, GRID = 6, (3, 4)
edge = st.floats(-1.5, 2.5, width=32)
windows = st.tuples(edge, edge, edge, edge).filter(
    lambda w: abs(w[0] - w[2]) > 0.05 and abs(w[1] - w[3]) > 0.05
)


def pixel_center(start: float, stop: float, index: int) -> float:
    return start + (stop - start) * (index + 0.5) / SIZE


def bilinear(mask: np.ndarray, y: float, x: float) -> float:
    """Looks up (y, x) in [0, 1] of the frame; beyond the outer cells' centres they continue."""
    values = np.pad(mask, 1, mode="edge")
    row = min(max(y * mask.shape[0] + 0.5, 0.5), mask.shape[0] + 0.5)
    column = min(max(x * mask.shape[1] + 0.5, 0.5), mask.shape[1] + 0.5)
    top, left = int(row), int(column)
    below, right = row - top, column - left
    upper = values[top, left] * (1 - right) + values[top, left + 1] * right
    lower = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return upper * (1 - below) + lower * below


@settings(max_examples=60, deadline=None)
@given(st.lists(windows, min_size=2, max_size=2), st.integers(0, 2**32 - 1))
def test_resample_is_bilinear_with_half_pixel_centers(
    batch: list[tuple[float, ...]], seed: int
) -> None:
    masks = np.random.default_rng(seed).random((2, *GRID), np.float32)
    found = np.asarray(resample(masks, np.array(batch, np.float32), SIZE))
    assert found.shape == (2, SIZE, SIZE, 1)
    for index, (top, left, bottom, right) in enumerate(batch):
        expected = [
            [
                bilinear(masks[index], pixel_center(top, bottom, i), pixel_center(left, right, j))
                for j in range(SIZE)
            ]
            for i in range(SIZE)
        ]
        # Positions are float32: 3 at most, times 4 cells, so an error of 1e-6 at most.
        np.testing.assert_allclose(found[index, :, :, 0], expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(windows)
def test_validity_is_one_where_a_pixel_center_is_in_the_frame(window: tuple[float, ...]) -> None:
    top, left, bottom, right = window
    ys = np.array([pixel_center(top, bottom, i) for i in range(SIZE)])
    xs = np.array([pixel_center(left, right, i) for i in range(SIZE)])
    near_an_edge = np.abs(np.concatenate([ys, ys - 1, xs, xs - 1])).min() < 1e-4
    if near_an_edge:
        return
    found = np.asarray(validity(np.array([window], np.float32), SIZE))[0, :, :, 0]
    inside = np.array([[0 <= y <= 1 and 0 <= x <= 1 for x in xs] for y in ys])
    np.testing.assert_array_equal(found, inside)


def test_the_whole_frame_at_its_own_size_is_the_mask_itself() -> None:
    masks = np.random.default_rng(0).random((1, 5, 5), np.float32)
    window = np.array([[0, 0, 1, 1]], np.float32)
    np.testing.assert_allclose(resample(masks, window, 5)[0, :, :, 0], masks[0], atol=1e-6)


def test_a_flipped_window_is_the_mirrored_mask() -> None:
    masks = np.random.default_rng(0).random((1, 5, 5), np.float32)
    window = np.array([[0, 1, 1, 0]], np.float32)
    mirrored = masks[0, :, ::-1]
    np.testing.assert_allclose(resample(masks, window, 5)[0, :, :, 0], mirrored, atol=1e-6)


def test_the_example_by_hand() -> None:
    """Cells 0 and 1 have their centres at 1/4 and 3/4 of the frame; between them it is linear."""
    masks = np.array([[[0.0, 1.0]]], np.float32)
    found = resample(masks, np.array([[0, 0, 1, 1]], np.float32), 4)[0, :, :, 0]
    np.testing.assert_allclose(found, [[0, 0.25, 0.75, 1]] * 4, atol=1e-6)


@pytest.mark.parametrize(("window", "columns"), [((0, -1, 1, 1), 3), ((0, 0.5, 1, 2.5), 2)])
def test_validity_counts_the_pixels_within_the_frame(
    window: tuple[float, ...], columns: int
) -> None:
    """Of 6 columns over [-1, 1], 3 are in the frame; over [0.5, 2.5], 1.5 columns wide, 1 or 2."""
    found = np.asarray(validity(np.array([window], np.float32), SIZE))
    assert found.sum() == SIZE * columns


@pytest.mark.parametrize("grid", [(2, 3), (5, 4), (6, 7), (1, 1)])
def test_area_average_is_the_mean_of_repeated_pixels(grid: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).random((2, 4, 6, 3), np.float32)
    height, width = grid
    # Both pixels and cells are whole numbers of these parts.
    parts = maps.repeat(height, axis=1).repeat(width, axis=2)
    expected = parts.reshape(2, height, 4, width, 6, 3).mean(axis=(2, 4))
    found = area_average(maps, height, width)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

"""Ranking images by spurious features, and the spurious gap: values by hand, the command."""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from command import run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from salient import write_annotations

from corm_jax.data.folder import open_folder
from corm_jax.errors import UserError
from corm_jax.files import write_json
from corm_jax.masks.__main__ import main
from corm_jax.masks.building import store
from corm_jax.masks.building.config import build_config
from corm_jax.masks.building.selection import Feature, write_features
from corm_jax.masks.spuriosity import rank, spuriosity, spurious_gap


def test_a_score_is_the_mean_of_the_features_z_scores() -> None:
    # means 2 and 30, standard deviations sqrt(2 / 3) and sqrt(200 / 3), divided by n
    activations = np.array([[1, 30], [2, 20], [3, 40]], np.float16)
    z = np.sqrt(3 / 2)
    np.testing.assert_allclose(spuriosity(activations), [-z / 2, -z / 2, z], rtol=1e-12)


def test_a_feature_equal_on_all_images_counts_nothing() -> None:
    activations = np.array([[0.1, 1], [0.1, 3], [0.1, 5]])  # the mean of 0.1 is not exactly 0.1
    z = np.sqrt(3 / 2)
    np.testing.assert_allclose(spuriosity(activations), [-z / 2, 0, z / 2], rtol=1e-12)
    np.testing.assert_array_equal(spuriosity(np.full((3, 2), 0.1)), np.zeros(3))
    np.testing.assert_array_equal(spuriosity(np.array([[4.0]])), np.zeros(1))


@given(
    arrays(np.float64, (6, 3), elements=st.integers(-50, 50).map(float), unique=True),
    st.integers(1, 9),
    st.integers(-9, 9),
)
def test_scale_and_offset_of_a_feature_make_no_difference(
    activations: np.ndarray, scale: int, offset: int
) -> None:
    scores = spuriosity(activations)
    np.testing.assert_allclose(scores.mean(), 0, atol=1e-12)
    changed = activations * np.array([scale, 1, 1]) + np.array([0, offset, 0])
    np.testing.assert_allclose(spuriosity(changed), scores, atol=1e-12)


def test_images_are_ranked_within_their_class_ties_by_their_order() -> None:
    labels = np.array([7, 5, 7, 5, 7, 7, 9, -1])
    activations = np.zeros((8, 4))
    activations[:, 3] = [2, 1, 9, 8, 2, 5, 6, 99]
    activations[:, 0] = 1000 - activations[:, 3]  # not the spurious one
    ranking = rank(activations.__getitem__, labels, {7: [3], 5: [3], 9: [], 4: [1]})
    assert ranking.order.keys() == {7, 5}  # 9 has no feature, 4 no image
    assert ranking.order[7].tolist() == [2, 5, 0, 4]  # of 9, 5, 2, 2
    assert ranking.order[5].tolist() == [3, 1]
    np.testing.assert_array_equal(np.isnan(ranking.scores), [0, 0, 0, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(ranking.scores[[1, 3]], [-1, 1])


def test_equal_images_keep_the_order_of_the_split() -> None:
    ranking = rank(np.ones((5, 1)).__getitem__, np.zeros(5, int), {0: [0]})
    assert ranking.order[0].tolist() == [0, 1, 2, 3, 4]


def test_the_gap_is_top_minus_bottom_averaged_over_classes() -> None:
    correct = np.array([1, 1, 0, 0, 0, 0, 0, 1, 1, 1], bool)
    order = {0: np.array([0, 1, 2, 3, 4]), 3: np.array([5, 9, 6, 7, 8])}
    measured = spurious_gap(order, correct, k=2)
    assert measured.by_class == {0: 1 - 0, 3: 0.5 - 1}
    assert (measured.top, measured.bottom, measured.gap) == (0.75, 0.5, 0.25)


def test_a_class_of_fewer_than_2k_images_is_halved() -> None:
    correct = np.array([1, 0, 0, 0, 1], bool)
    order = {0: np.array([0, 1, 2, 3]), 1: np.array([4])}  # a single image has no two ends
    measured = spurious_gap(order, correct, k=100)
    assert measured.by_class == {0: 0.5}
    assert spurious_gap({0: np.array([0, 1, 2])}, correct, k=2).by_class == {0: 1.0}


def test_a_gap_without_rankings_or_images_is_an_error() -> None:
    with pytest.raises(UserError, match="no class has a spurious feature and two images"):
        spurious_gap({1: np.array([4])}, np.ones(5, bool), k=3)
    with pytest.raises(UserError, match="k=0"):
        spurious_gap({1: np.array([0, 1])}, np.ones(5, bool), k=0)


ROWS = (("class0", 0, 2), ("class0", 0, 1), ("class1", 1, 0))  # class, its index, feature


def write_answers(path: Path, against: Sequence[int]) -> None:
    """Writes five answers to each of `ROWS`, some against the main object."""
    rows = []
    for (name, index, feature), count in zip(ROWS, against, strict=True):
        answers = ["background"] * count + ["main_object"] * (5 - count)
        pair = [name, str(index), str(feature), "1"]
        rows += [[str(worker), *pair, a, "5", ""] for worker, a in enumerate(answers)]
    write_annotations(path, rows)


@pytest.fixture
def workdir(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    """What a build leaves, of 8 training images of two classes; one could not be read."""
    folder, workdir = make_folder(classes=2, images=5), tmp_path / "work"
    images, _, _ = open_folder(folder, 0.2)
    names = images.file_names
    config = build_config("folder")
    config.data.folder = str(folder)
    write_json(workdir / "config.json", config.to_dict())
    features = [Feature(index, feature, 1, 1.0) for _, index, feature in ROWS]
    write_features(workdir / "features.json", features, ["class0", "class1"])
    write_answers(workdir / "annotations.csv", [4, 2, 0])
    header = store.describe(
        names, encoder="x", shard_images=8, channels=3, grid=(1, 1), candidates=1
    )
    train = workdir / "store" / "train"
    store.create_store(train, header, names)
    label = np.array([name.startswith(b"class1") for name in names], np.int32)
    rows = np.flatnonzero(label == 0)
    activations = np.zeros((8, 3), np.float16)
    activations[rows, 2] = [1, 9, 2, 3]
    shard = {
        "label": label,
        "predicted": np.where(np.arange(8) == rows[0], 1, label).astype(np.int32),
        "valid": np.arange(8) != rows[1],
        "activations": activations,
        "candidates": np.zeros((8, 1), np.uint16),
        "maps": np.zeros((8, 1, 1, 1), np.uint8),
    }
    store.write_arrays(store.shard_path(train, 0), shard)
    return workdir


def test_the_command_writes_a_table_and_a_picture(workdir: Path) -> None:
    flags = ["spuriosity", str(workdir), "--k=1", "--n=2"]
    code, output, errors = run(flags, module="corm_jax.masks")
    assert code == 0, errors
    names = [n for n in np.load(workdir / "store/train/file_names.npy") if n.startswith(b"class0")]
    z = np.sqrt(3 / 2)
    with (workdir / "spuriosity.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["file_name", "class", "score", "rank"],
            [names[3].decode(), "class0", f"{z:.6f}", "1"],
            [names[2].decode(), "class0", "0.000000", "2"],
            [names[0].decode(), "class0", f"{-z:.6f}", "3"],
        ]
    assert "3 images of 1 classes with a spurious feature" in output
    assert "spurious gap: +100.0 points (100.0% on the most, 0.0% on the least" in output
    with Image.open(workdir / "spuriosity.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 100  # random pixels are drawn


@pytest.mark.parametrize(
    ("name", "against", "message"),
    [
        ("none.csv", None, "cannot read .*none.csv"),
        ("a.csv", [0, 2, 1], "a.csv calls no feature spurious"),
    ],
)
def test_the_command_names_wrong_annotations(
    workdir: Path, capsys: pytest.CaptureFixture, name: str, against: list | None, message: str
) -> None:
    path = workdir / name
    if against is not None:
        write_answers(path, against)
    assert main(["spuriosity", str(workdir), f"--annotations={path}"]) == 1
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert not (workdir / "spuriosity.csv").exists()


def test_the_command_names_a_missing_build(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["spuriosity", str(tmp_path)]) == 1
    assert "features.json is missing; select features first" in capsys.readouterr().err

"""The ends of a ranking by spuriosity, in batches and in the spurious gap."""

from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from evaluating import Linear, batches, evaluate, mesh_of

from corm_jax.data.pipeline import identity
from corm_jax.data.ranked import rank
from corm_jax.errors import UserError
from corm_jax.protocols import PROTOCOLS, make_eval_step

NAMES = np.array([f"{place}.jpg".encode() for place in range(9)])
IDS = np.array([identity(name) for name in NAMES], np.uint32)
ROWS = [(0, "otter", 2), (1, "otter", 1), (2, "otter", 3), (5, "duck", 2), (6, "duck", 1)]


class Images:
    """Stands where a loader of images does."""

    split = SimpleNamespace(images=SimpleNamespace(file_names=NAMES))

    def batches(self, start: int, stop: int):
        yield {"id": IDS, "weight": np.ones(9, np.float32)}


def write(path: Path, rows, header="file_name,class,score,rank") -> Path:
    lines = [header, *(f"{n}.jpg,{c},0.5,{place}" for n, c, place in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_each_class_has_as_many_images_at_either_end(tmp_path: Path) -> None:
    path = write(tmp_path / "spuriosity.csv", [*ROWS, (77, "otter", 0), (8, "seal", 1)])
    (batch,) = rank(Images(), path).batches(0, 1)
    # Of three otters one at each end; the unknown image does not count, a seal alone is at none.
    np.testing.assert_array_equal(batch["end"], [0, 1, -1, 0, 0, -1, 1, 0, 0])
    assert batch["end"].dtype == np.float32


def test_ends_are_a_hundred_images_at_most(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("corm_jax.data.ranked.ENDS", 2)
    path = write(tmp_path / "spuriosity.csv", [(n, "otter", 9 - n) for n in range(9)])
    (batch,) = rank(Images(), path).batches(0, 1)
    np.testing.assert_array_equal(batch["end"], [-1, -1, 0, 0, 0, 0, 0, 1, 1])


def test_the_gap_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(8 * 8 * 3, 2))
    images = rng.integers(0, 256, (9, 8, 8, 3)).astype(np.uint8)
    hits = (images.reshape(9, -1) / 255 @ kernel).argmax(axis=1)
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1], np.int32)
    end = np.array([1, 1, 0, -1, 1, 1, -1, -1, 0], np.float32)
    examples = {
        "image": images,
        "label": label,
        "end": end,
        "id": IDS,
        "weight": np.ones(9, np.float32),
        "has_mask": np.zeros(9, np.float32),
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (9, 1)),
        "core_mask": np.zeros((9, 8, 8), np.uint8),
    }
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(2)}
    mesh = mesh_of(1)
    step = make_eval_step(PROTOCOLS["spurious_gap"](Linear(2), None), mesh)
    found = evaluate(step, {"params": {"Dense_0": layer}}, batches(examples, 4), mesh)

    def accuracy(sign: int) -> float:
        return np.mean([(hits == c)[(label == c) & (end == sign)].mean() for c in range(2)])

    assert found == pytest.approx(
        {
            "most_spurious": accuracy(1),
            "least_spurious": accuracy(-1),
            "spurious_gap": accuracy(1) - accuracy(-1),
        },
        abs=1e-6,
    )


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spuriosity.csv"
    with pytest.raises(UserError, match=r"spuriosity\.csv cannot be read"):
        rank(Images(), path)
    with pytest.raises(UserError, match=r"spuriosity\.csv lacks the columns class, rank"):
        rank(Images(), write(path, [], header="file_name,score"))
    with pytest.raises(UserError, match="ranks no two images of a class of this split"):
        rank(Images(), write(path, [(50, "otter", 1), (51, "otter", 2)]))
    with pytest.raises(UserError, match="line 3: rank 'first' is no number"):
        rank(Images(), write(path, [(0, "otter", 1), (1, "otter", "first")]))

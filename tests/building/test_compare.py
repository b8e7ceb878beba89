import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corm_jax.masks.building.compare import SIZE, answers_of_masks, intersection_over_union
from corm_jax.masks.building.selection import Feature
from corm_jax.masks.building.store import FeatureStore
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.writer import MaskWriter


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def half(side: str) -> np.ndarray:
    """A mask of 24 x 24 pixels, white on one half."""
    mask = np.zeros((24, 24), np.uint8)
    mask[:, :12] = 255
    return {"left": mask, "right": mask[:, ::-1], "top": mask.T}[side]


@pytest.fixture
def true(tmp_path: Path) -> MaskRecords:
    with MaskWriter(tmp_path / "true", encoding="png") as writer:
        for index, side in enumerate(("left", "left", "right", "top")):
            writer.add(f"train_{index}.JPEG", core=png(half(side)))
    return MaskRecords.open(tmp_path / "true")


def test_overlap_of_halves_by_hand(true: MaskRecords, tmp_path: Path) -> None:
    left = np.ascontiguousarray(half("left")) // 2  # half as strong: above half of its maximum
    with MaskWriter(tmp_path / "built", encoding="grid", grid=(24, 24)) as writer:
        writer.add("train_2.JPEG", core=left)
        writer.add("train_0.JPEG", core=left)
        writer.add("train_3.JPEG", core=left)
        writer.add("train_1.JPEG", spurious=left)
    names = np.array([b"train_0.JPEG", b"train_1.JPEG", b"train_2.JPEG", b"train_3.JPEG"])
    built = MaskRecords.open(tmp_path / "built")
    found = intersection_over_union(built, true, {"train": names, "none": names[:0]}, 1.0)
    assert set(found) == {"train"}
    assert found["train"]["images"] == 3  # the one with a spurious mask alone is left out
    # The same half 1, the other half 0, a crossing half 1/3; soft: 1/2, 0, 1/4 over 1 + 1/4 halves.
    assert found["train"]["binary"] == pytest.approx((1 + 0 + 1 / 3) / 3, abs=0.02)
    assert found["train"]["soft"] == pytest.approx((1 / 2 + 0 + 1 / 5) / 3, abs=0.02)


def test_true_masks_answer_where_the_map_lies(
    make_store: Callable[..., FeatureStore], true: MaskRecords
) -> None:
    maps = np.zeros((4, 3, 6, 6), np.uint8)
    maps[:, 0, :, :2] = 200  # on the left third
    maps[:, 1, :, 4:] = 200
    maps[:, 2] = 200  # everywhere: most of it lies on the mask dilated
    activations = np.array([[3, 3, 3], [2, 2, 2], [0, 9, 0], [0, 0, 0]], np.float32)
    store = make_store(activations, [0, 0, 1, 1], maps=maps)
    features = [Feature(0, c, c + 1, 1.0) for c in range(3)] + [Feature(1, 1, 1, 1.0)]
    assert answers_of_masks(store, features, true, 1.0) == [
        "main_object",
        "background",
        "main_object",
        "main_object",  # inside on image 2, a third inside on image 3
    ]
    assert SIZE == 48

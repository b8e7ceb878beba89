"""A mask drawn from the image's own content still lies on it after any crop, flip and resize.

The images' red channel is a smooth wave; the masks are the same wave, evaluated at the centres of
the mask's own pixels. So wherever the mask is valid, mask and red channel must agree after
preprocessing, and a displacement shows as a difference along the gradient.
"""

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from corm_jax.data import preprocess
from corm_jax.data.tf_import import tf
from corm_jax.masks.records import FULL_FRAME
from corm_jax.steps import expand_batch

PERIOD = 60.0  # of the wave, in pixels of the image
CENTER_CROP = {"type": "center_crop", "resize": 256, "crop": 224}
BOX = {"type": "box"}
BOX_OF = {"full": (0, 0, 1, 1), "center_crop": (0, 0, 1, 1), "box": (0.25, 0.1, 0.9, 0.8)}


@dataclasses.dataclass
class Masks:
    """What preprocessing looks at in a set of masks."""

    encoding: str
    frame: dict[str, Any]
    size: tuple[int, int] | None = None  # known: resampled on the device where that is larger


def wave(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns values in [7, 247] at positions in pixels from the image's corner."""
    ys, xs = 2 * np.pi * y / PERIOD + 2, 2 * np.pi * x / PERIOD + 1
    return 127 + 60 * np.sin(ys)[:, None] + 60 * np.sin(xs)[None, :]


def draw(frame: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Draws the wave in a frame (top, left, height, width in pixels) at a size in pixels."""
    top, left, height, width = frame
    y = top + (np.arange(size[0]) + 0.5) * height / size[0]
    x = left + (np.arange(size[1]) + 0.5) * width / size[1]
    return np.rint(wave(y, x)).astype(np.uint8)


def frame_in_pixels(frame: dict, size: tuple[int, int]) -> tuple[float, float, float, float]:
    height, width = size
    if frame["type"] == "center_crop":
        side = min(size) * frame["crop"] / frame["resize"]
        return (height - side) / 2, (width - side) / 2, side, side
    top, left, bottom, right = BOX_OF[frame["type"]]
    return top * height, left * width, (bottom - top) * height, (right - left) * width


def encode(pixels: np.ndarray, suffix: str) -> bytes:
    file = io.BytesIO()
    # Without chroma subsampling, or the red channel would be blurred.
    options = {"quality": 98, "subsampling": 0} if suffix == "JPEG" else {}
    Image.fromarray(pixels).save(file, suffix, **options)
    return file.getvalue()


def make_example(
    size: tuple[int, int], frame: dict, mask_size: tuple[int, int], *, grid: bool, suffix: str
) -> dict[str, Any]:
    """Makes an encoded example: red is the wave, green counts columns, blue counts rows."""
    height, width = size
    rows = np.broadcast_to(np.arange(height)[:, None], size)
    columns = np.broadcast_to(np.arange(width)[None], size)
    red = draw((0, 0, height, width), size)
    mask = draw(frame_in_pixels(frame, size), mask_size)
    example = {
        "image_bytes": encode(np.stack([red, columns, rows], -1).astype(np.uint8), suffix),
        "label": np.int32(0),
        "id": np.uint32(0),
        "position": np.int64(0),
        "weight": np.float32(1),
        "has_mask": np.float32(1),
        "mask_frame": np.array(BOX_OF[frame["type"]], np.float32),
    }
    return example | ({"core_grid": mask} if grid else {"mask_bytes": encode(mask, "PNG")})


def run(
    operations: list[preprocess.Operation], example: dict, positions: int
) -> dict[str, np.ndarray]:
    """Preprocesses an example at several positions and expands the batch on the device."""
    operation = preprocess.compose(operations)
    done = [
        operation({k: tf.constant(v) for k, v in (example | {"position": np.int64(p)}).items()})
        for p in range(positions)
    ]
    batch = {key: np.stack([d[key].numpy() for d in done]) for key in done[0]}
    return {key: np.asarray(value) for key, value in expand_batch(batch).items()}


def displacement(image: np.ndarray, mask: np.ndarray, use: np.ndarray) -> np.ndarray:
    """Returns by how many pixels (y, x) a mask is displaced, by least squares.

    Contrast and brightness are fitted as well, since interpolation flattens the wave's crests.
    """
    columns = [*np.gradient(image), image, np.ones_like(image)]
    columns = np.stack([column[use] for column in columns], axis=-1)
    return np.linalg.lstsq(columns, (image - mask)[use], rcond=None)[0][:2]


def check_aligned(batch: dict[str, np.ndarray], margin: int, tolerance: float) -> None:
    """Asserts that mask and red channel agree within `tolerance` of 255 levels.

    Left out is a margin along the crop's edge, where the image repeats its border while the mask
    goes on, and along the frame's edge, where the mask repeats its border.
    """
    red, mask = batch["image"][..., 0] * 255, batch["core_mask"][..., 0] * 255
    valid = batch["mask_valid"][..., 0] > 0
    checked = 0
    for image, core, use in zip(red, mask, valid, strict=True):
        inner = scipy.ndimage.binary_erosion(use, np.ones((2 * margin + 1,) * 2))
        if inner.sum() < 300:
            continue
        checked += 1
        assert np.abs(displacement(image, core, inner)).max() < 0.1
        assert np.abs(image - core)[inner].max() <= tolerance
    assert checked > len(red) / 2


# Tolerances in levels, where half a pixel of the image is 3 and the bilinear interpolation of the
# wave from cells of size h is off by 120 (2 pi h / 60)^2 / 8. Rounding takes 1; JPEG up to 4.
MASK_KINDS = {  # cell in pixels of the image, encoding, whether of one known size, tolerance
    "of the image's size": (1, "png", False, 1.5),
    "of half the size": (2, "png", False, 2.5),
    "of half the size, known": (2, "png", True, 2.5),
    "of a grid": (5, "grid", True, 6.0),
}


def margin_of(cell: int, image_size: int, crop: int) -> int:
    """Returns half a cell, and a pixel, of a crop of this side, in pixels of the result."""
    return math.ceil((cell / 2 + 1) * image_size / crop) + 1


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("frame", [FULL_FRAME, CENTER_CROP, BOX], ids=lambda f: f["type"])
@pytest.mark.parametrize(("size", "image_size"), [((120, 200), 56), ((200, 120), 232)])
def test_training_keeps_masks_aligned(
    kind: str, frame: dict, size: tuple[int, int], image_size: int
) -> None:
    cell, encoding, known, tolerance = MASK_KINDS[kind]
    extent = frame_in_pixels(frame, size)[2:]
    mask_size = (round(extent[0] / cell), round(extent[1] / cell))
    example = make_example(size, frame, mask_size, grid=encoding == "grid", suffix="PNG")
    masks = Masks(encoding, frame, mask_size if known else None)
    operations = preprocess.training(
        masks, image_size=image_size, area=(0.35, 1.0), flip=True, seed=7
    )
    check_aligned(
        run(operations, example, positions=6), margin_of(cell, image_size, crop=80), tolerance
    )


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("frame", [FULL_FRAME, CENTER_CROP, BOX], ids=lambda f: f["type"])
@pytest.mark.parametrize(("size", "image_size"), [((121, 200), 56), ((200, 120), 232)])
def test_evaluation_keeps_masks_aligned(
    kind: str, frame: dict, size: tuple[int, int], image_size: int
) -> None:
    """Here a smaller image is an average over pixels while masks are looked up at points.

    The average over a triangle of half-width s (here 2 pixels) takes 120 (2 pi s / 60)^2 / 12,
    0.4 levels, off the wave's crests.
    """
    cell, encoding, known, tolerance = MASK_KINDS[kind]
    extent = frame_in_pixels(frame, size)[2:]
    mask_size = (round(extent[0] / cell), round(extent[1] / cell))
    example = make_example(size, frame, mask_size, grid=encoding == "grid", suffix="PNG")
    masks = Masks(encoding, frame, mask_size if known else None)
    operations = preprocess.evaluation(masks, image_size=image_size, share=0.875)
    margin = margin_of(cell, image_size, crop=105)
    check_aligned(run(operations, example, positions=1), margin, tolerance + 0.5)


@pytest.mark.parametrize("grid", [False, True], ids=["png", "grid"])
def test_jpeg_images_keep_masks_aligned(grid: bool) -> None:
    """JPEG images are decoded inside the crop alone."""
    size, masks = (123, 201), Masks("grid" if grid else "png", CENTER_CROP)
    cell, mask_size = (3, (36, 36)) if grid else (1, (108, 108))
    margin = margin_of(cell, 64, crop=50)
    example = make_example(size, CENTER_CROP, mask_size, grid=grid, suffix="JPEG")
    operations = preprocess.training(masks, image_size=64, area=(0.2, 1.0), flip=True, seed=3)
    check_aligned(run(operations, example, positions=8), margin, tolerance=7)
    operations = preprocess.evaluation(masks, image_size=64, share=1.0)
    check_aligned(run(operations, example, positions=1), margin, tolerance=7)


def test_a_shift_of_a_quarter_pixel_would_be_noticed() -> None:
    """The measurement itself: a wave, and the same wave a quarter of a pixel to the left."""
    image = draw((0, 0, 50, 50), (50, 50)).astype(float)
    shifted = draw((0, 0.25, 50, 50), (50, 50)).astype(float)
    everywhere = np.ones((50, 50), bool)
    np.testing.assert_allclose(displacement(image, shifted, everywhere), [0, -0.25], atol=0.02)


@pytest.mark.parametrize("encoding", ["png", "grid"])
@pytest.mark.parametrize("frame", [CENTER_CROP, BOX], ids=lambda f: f["type"])
def test_validity_ends_where_the_frame_ends(frame: dict, encoding: str) -> None:
    """Green and blue tell each pixel's column and row in the image, to a pixel."""
    size, image_size = (120, 200), 96
    grid = encoding == "grid"
    top, left, height, width = frame_in_pixels(frame, size)
    mask_size = (round(height), round(width))
    example = make_example(size, frame, mask_size, grid=grid, suffix="PNG")
    operations = preprocess.training(
        Masks(encoding, frame), image_size=image_size, area=(0.3, 1.0), flip=True, seed=1
    )
    batch = run(operations, example, positions=12)
    x, y = (batch["image"][..., channel] * 255 + 0.5 for channel in (1, 2))
    valid = batch["mask_valid"][..., 0]
    outside = np.maximum.reduce([top - y, y - top - height, left - x, x - left - width])
    assert set(np.unique(valid)) == {0.0, 1.0}
    np.testing.assert_array_equal(valid[outside > 1], 0)
    np.testing.assert_array_equal(valid[outside < -1], 1)
    np.testing.assert_array_equal(batch["core_mask"][..., 0][valid == 0], 0)


@pytest.mark.parametrize("encoding", ["png", "grid"])
def test_validity_counts_of_a_center_crop_by_hand(encoding: str) -> None:
    """Of a 320 x 256 image's central 256 x 256, the frame is the central 224 x 224."""
    example = make_example((320, 256), CENTER_CROP, (7, 7), grid=encoding == "grid", suffix="PNG")
    operations = preprocess.evaluation(Masks(encoding, CENTER_CROP), image_size=256, share=1.0)
    valid = run(operations, example, positions=1)["mask_valid"][0, :, :, 0]
    expected = np.zeros((256, 256))
    expected[16:240, 16:240] = 1
    np.testing.assert_array_equal(valid, expected)


def test_validity_covers_everything_in_a_full_frame() -> None:
    example = make_example((50, 77), FULL_FRAME, (50, 77), grid=False, suffix="PNG")
    masks = Masks("png", FULL_FRAME)
    operations = preprocess.training(masks, image_size=33, area=(0.1, 1.0), flip=True, seed=0)
    assert run(operations, example, positions=30)["mask_valid"].min() == 1

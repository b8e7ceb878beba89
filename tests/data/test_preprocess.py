"""Crops, flips and decoding: by seed and position alone, and right for every kind of file."""

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from corm_jax.data import preprocess
from corm_jax.data.tf_import import tf
from corm_jax.masks.records import FULL_FRAME

SIZE = (40, 60)
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
SMOOTH = np.asarray(Image.fromarray(PIXELS).resize((6, 4)).resize(SIZE[::-1], Image.BICUBIC))


@dataclasses.dataclass
class Masks:
    """What preprocessing looks at in a set of masks."""

    encoding: str = "png"
    frame: dict[str, Any] = dataclasses.field(default_factory=lambda: FULL_FRAME)
    size: tuple[int, int] | None = None


def encode(image: Image.Image, suffix: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


PNG_IMAGE = encode(Image.fromarray(PIXELS), "PNG")
PNG_MASK = encode(Image.fromarray(PIXELS[..., 0]), "PNG")


def make_example(**changes: Any) -> dict[str, tf.Tensor]:
    example = {
        "image_bytes": PNG_IMAGE,
        "mask_bytes": PNG_MASK,
        "mask_frame": np.array([0, 0, 1, 1], np.float32),
        "position": np.int64(0),
        "label": np.int32(3),
        "id": np.uint32(5),
        "weight": np.float32(1),
        "has_mask": np.float32(1),
    }
    return {key: tf.constant(value) for key, value in (example | changes).items()}


def training(**changes: Any) -> list[preprocess.Operation]:
    arguments = {"image_size": 16, "area": (0.2, 0.9), "flip": True, "seed": 4} | changes
    return preprocess.training(Masks(), **arguments)


def whole(image_bytes: bytes, mask_bytes: bytes = PNG_MASK) -> dict[str, np.ndarray]:
    """Returns a 40 x 40 image at its own size."""
    operations = preprocess.evaluation(Masks(), image_size=40, share=1.0)
    example = make_example(image_bytes=image_bytes, mask_bytes=mask_bytes)
    done = preprocess.compose(operations)(example)
    return {key: value.numpy() for key, value in done.items()}


@pytest.mark.parametrize("encoding", ["png", "grid"])
@pytest.mark.parametrize("train", [True, False])
def test_eager_and_tf_data_give_the_same(encoding: str, train: bool) -> None:
    if train:
        operations = preprocess.training(
            Masks(encoding), image_size=24, area=(0.3, 1.0), flip=True, seed=1
        )
    else:
        operations = preprocess.evaluation(Masks(encoding), image_size=24, share=0.8)
    operation = preprocess.compose(operations)
    grid = {"core_grid": np.arange(6, dtype=np.uint8).reshape(2, 3)} if encoding == "grid" else {}
    jpeg = encode(Image.fromarray(PIXELS), "JPEG")
    examples = [
        make_example(position=np.int64(p), image_bytes=data, **grid)
        for p, data in enumerate([PNG_IMAGE, jpeg] * 4)
    ]
    stacked = {key: tf.stack([e[key] for e in examples]) for key in examples[0]}
    dataset = tf.data.Dataset.from_tensor_slices(stacked).map(operation)
    for example, found in zip(examples, dataset.as_numpy_iterator(), strict=True):
        expected = operation(example)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value.numpy(), err_msg=key)


def test_seed_and_position_decide_crop_and_flip() -> None:
    def window(seed: int, position: int) -> tuple:
        example = make_example(position=np.int64(position))
        return tuple(preprocess.compose(training(seed=seed))(example)["mask_window"].numpy())

    assert window(4, 9) == window(4, 9)
    assert len({window(seed, position) for seed in (4, 5) for position in range(10)}) == 20


def test_crops_are_within_the_bounds_and_spread_over_them() -> None:
    operation = preprocess.compose(training(area=(0.25, 0.5))[:2])
    # In an image of many pixels, so that rounding to whole ones does not matter.
    large = {"image_bytes": encode(Image.new("L", (1200, 800)), "PNG")}
    crops = np.array(
        [operation(make_example(position=np.int64(p), **large))["crop"] for p in range(300)]
    )
    top, left, height, width = crops.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 800).all()
    assert (left + width <= 1200).all()
    area, aspect = height * width / (1200 * 800), width / height
    assert area.min() >= 0.25 - 0.01
    assert area.max() <= 0.5 + 0.01
    assert area.min() < 0.27
    assert area.max() > 0.48
    assert aspect.min() >= 3 / 4 - 0.01
    assert aspect.max() <= 4 / 3 + 0.01
    assert aspect.min() < 0.8
    assert aspect.max() > 1.25


def test_a_crop_that_cannot_have_the_aspect_is_the_whole_image() -> None:
    narrow = encode(Image.new("L", (600, 100)), "PNG")
    operation = preprocess.compose(training(area=(0.9, 1.0))[:2])
    crop = operation(make_example(image_bytes=narrow))["crop"].numpy()
    assert crop.tolist() == [0, 0, 100, 600]


def flips(operations: list[preprocess.Operation]) -> list[bool]:
    operation = preprocess.compose(operations)
    windows = [
        operation(make_example(position=np.int64(p)))["mask_window"].numpy() for p in range(200)
    ]
    return [bool(window[1] > window[3]) for window in windows]


def test_half_of_the_images_are_mirrored() -> None:
    assert 80 <= sum(flips(training())) <= 120  # 2.8 standard deviations; the seed is fixed


def test_no_image_is_mirrored_without_flip() -> None:
    assert not any(flips(training(flip=False)))


def test_evaluation_takes_the_center_at_its_own_size() -> None:
    done = whole(PNG_IMAGE)
    np.testing.assert_array_equal(done["image"], PIXELS[:, 10:50])
    np.testing.assert_array_equal(done["core_mask"], PIXELS[:, 10:50, 0])
    np.testing.assert_allclose(done["mask_window"], [0, 1 / 6, 1, 5 / 6], atol=1e-6)
    assert (done["label"], done["id"], done["weight"], done["has_mask"]) == (3, 5, 1, 1)


def test_an_example_without_mask_gets_zeros() -> None:
    assert not whole(PNG_IMAGE, b"")["core_mask"].any()


def test_one_bit_masks_read_as_0_and_255() -> None:
    white = PIXELS[..., 0] > 127
    mask = encode(Image.fromarray(white), "PNG")
    assert mask[24] == 1  # bits
    np.testing.assert_array_equal(whole(PNG_IMAGE, mask)["core_mask"], 255 * white[:, 10:50])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_png_images_of_every_colour_type_are_read(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    expected = np.asarray(image.convert("RGB"))[:, 10:50]
    np.testing.assert_array_equal(whole(encode(image, "PNG"))["image"], expected)


def test_opacity_of_an_image_is_ignored() -> None:
    pixels = np.dstack([PIXELS, np.zeros(SIZE, np.uint8)])
    done = whole(encode(Image.fromarray(pixels), "PNG"))
    np.testing.assert_array_equal(done["image"], PIXELS[:, 10:50])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
def test_jpeg_images_have_the_pixels_of_pil(mode: str, subsampling: int) -> None:
    """But for a crop's last column, where subsampled colours lack their right neighbours."""
    data = encode(Image.fromarray(PIXELS).convert(mode), "JPEG", subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[:, 10:50]
    np.testing.assert_array_equal(whole(data)["image"][:, :-1], expected[:, :-1])


def test_cmyk_jpeg_images_are_read() -> None:
    data = encode(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=98)
    difference = whole(data)["image"].astype(int) - SMOOTH[:, 10:50]
    assert np.abs(difference).mean() < 3


def test_a_16_bit_image_keeps_its_upper_8_bits() -> None:
    image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    expected = np.repeat(PIXELS[:, 10:50, :1], 3, axis=-1)
    np.testing.assert_array_equal(whole(encode(image, "PNG"))["image"], expected)


def test_orientation_in_exif_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    plain, rotated = (
        encode(Image.fromarray(SMOOTH), "JPEG", **options) for options in ({}, {"exif": exif})
    )
    assert plain != rotated
    np.testing.assert_array_equal(whole(plain)["image"], whole(rotated)["image"])


@pytest.mark.parametrize("suffix", ["BMP", "GIF", "WEBP"])
def test_other_formats_are_refused(suffix: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        whole(encode(Image.fromarray(PIXELS), suffix))


@pytest.mark.parametrize(
    ("mask_size", "fits"),
    [
        ((40, 60), True),
        ((20, 30), True),
        ((7, 10), True),  # 6.67 x 10, rounded
        ((40, 61), True),
        ((400, 601), True),
        ((40, 64), False),
        ((60, 40), False),
        ((20, 20), False),
        ((7, 7), False),
    ],
)
def test_a_mask_must_have_the_images_aspect_up_to_a_pixel(
    mask_size: tuple[int, int], fits: bool
) -> None:
    mask = encode(Image.new("L", mask_size[::-1], 200), "PNG")
    if fits:
        assert (whole(PNG_IMAGE, mask)["core_mask"] == 200).all()
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="another aspect ratio"):
            whole(PNG_IMAGE, mask)

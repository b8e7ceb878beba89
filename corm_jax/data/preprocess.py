"""Joint preprocessing of an image and its mask: dict -> dict functions inside tf.data.

The image is decoded inside its crop window; the mask is looked up at the very same window, in the
coordinates of its own frame (see `corm_jax.masks.resample` for the windows). An example has

    image_bytes   string: an encoded JPEG or PNG
    position      int64: counts examples over all epochs; seeds the augmentation
    mask_frame    float32 [4]: top, left, bottom, right of the mask's frame, in [0, 1] of the image
    mask_bytes    string: an encoded PNG, empty if there is none; only where masks are PNG files
and the functions add, in this order,
    image_size    int32 [2]: height and width in pixels
    crop          int32 [4]: top, left, height, width in pixels
    image         uint8 [S, S, 3]
    mask_window   float32 [4]: the crop in the mask's frame
  and where masks are PNG files one of
    core_grid     uint8 [h, w]: the mask in its own frame
    core_mask     uint8 [S, S]: the mask resampled to the crop
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from corm_jax.data.geometry import aspects_match, center_crop_share
from corm_jax.data.tf_import import tf
from corm_jax.masks.png import HEADER_BYTES, SIGNATURE
from corm_jax.masks.records import MaskSource

Example = dict[str, Any]
Operation = Callable[[Example], Example]

ASPECT_RANGE = (3 / 4, 4 / 3)  # of random crops, as in Szegedy et al. 2015
CROP_ATTEMPTS = 10


def read_size(example: Example) -> Example:
    """Adds `image_size` from the header of a JPEG or PNG."""
    encoded = example["image_bytes"]

    def png_size() -> tf.Tensor:
        is_png = tf.strings.substr(encoded, 0, len(SIGNATURE)) == SIGNATURE
        has_size = tf.strings.length(encoded) >= HEADER_BYTES
        tf.debugging.Assert(is_png & has_size, ["not a JPEG or PNG"])
        # Padded if too short: an op that failed here would put the file's bytes into its message,
        # which Python then cannot decode.
        header = tf.strings.substr(encoded, 0, 24)
        words = tf.io.decode_raw(header, tf.int32, little_endian=False, fixed_length=24)
        return words[5:3:-1]

    size = tf.cond(
        tf.io.is_jpeg(encoded), lambda: tf.image.extract_jpeg_shape(encoded)[:2], png_size
    )
    return {**example, "image_size": tf.ensure_shape(size, [2])}


def random_resized_crop(*, seed: int, area: tuple[float, float]) -> Operation:
    """Chooses a window of a random share of the image's area, of random aspect.

    Args:
      seed: with the example's position, decides the window.
      area: smallest and largest share of the image's area, in (0, 1].
    """

    def operation(example: Example) -> Example:
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.concat([example["image_size"], [3]], axis=0),
            bounding_boxes=tf.zeros([1, 0, 4]),
            seed=tf.stack([tf.constant(seed, tf.int64), 2 * example["position"]]),
            min_object_covered=0.0,
            aspect_ratio_range=ASPECT_RANGE,
            area_range=area,
            max_attempts=CROP_ATTEMPTS,
            use_image_if_no_bounding_boxes=True,
        )
        return {**example, "crop": tf.concat([begin[:2], size[:2]], axis=0)}

    return operation


def center_crop(*, share: float) -> Operation:
    """Chooses the central square whose side is `share` of the image's shorter side."""

    def operation(example: Example) -> Example:
        size = example["image_size"]
        shorter = tf.cast(tf.reduce_min(size), tf.float32)
        side = tf.cast(tf.round(share * shorter), tf.int32)
        begin = (size - side) // 2
        return {**example, "crop": tf.concat([begin, [side, side]], axis=0)}

    return operation


def decode(*, image_size: int, antialias: bool) -> Operation:
    """Decodes the crop and resizes it bilinearly (half-pixel centres).

    Args:
      image_size: height and width of the result in pixels.
      antialias: whether to average over source pixels when shrinking. Training does without, as
        is usual: it is much faster and the crops' scale varies anyway.
    """

    def operation(example: Example) -> Example:
        encoded, crop = example["image_bytes"], example["crop"]

        def decode_png() -> tf.Tensor:
            image = tf.io.decode_png(encoded, channels=3)
            return tf.image.crop_to_bounding_box(image, crop[0], crop[1], crop[2], crop[3])

        pixels = tf.cond(
            tf.io.is_jpeg(encoded),
            # The accurate transform gives the very pixels of PIL, which other frameworks train on;
            # the default is off by up to 10 levels, and hardly faster.
            lambda: tf.io.decode_and_crop_jpeg(
                encoded, crop, channels=3, dct_method="INTEGER_ACCURATE"
            ),
            decode_png,
        )
        if antialias:
            resized = tf.image.resize(pixels, [image_size] * 2, antialias=True)
            resized = tf.clip_by_value(resized, 0.0, 255.0)
        else:
            # The raw op resizes uint8 directly; tf.image.resize would convert it all first. Between
            # neighbours nothing leaves [0, 255], and a clip would cost a tenth of the whole path.
            resized = tf.raw_ops.ResizeBilinear(
                images=pixels[None], size=[image_size] * 2, half_pixel_centers=True
            )[0]
        image = tf.cast(tf.round(resized), tf.uint8)
        return {**example, "image": tf.ensure_shape(image, [image_size, image_size, 3])}

    return operation


def locate_in_frame(*, center_share: float) -> Operation:
    """Adds `mask_window`: where the crop lies in the mask's frame.

    Args:
      center_share: side of the masks' centre-crop frame over the image's shorter side; 0 if
        the frame is the example's `mask_frame`.
    """

    def operation(example: Example) -> Example:
        size = tf.cast(example["image_size"], tf.float32)
        crop = tf.cast(example["crop"], tf.float32)
        if center_share:
            side = center_share * tf.reduce_min(size)
            extent = tf.stack([side, side])
            origin = (size - side) / 2
        else:
            frame = example["mask_frame"]
            origin = frame[:2] * size
            extent = (frame[2:] - frame[:2]) * size
        begin = (crop[:2] - origin) / extent
        end = (crop[:2] + crop[2:] - origin) / extent
        return {**example, "mask_window": tf.concat([begin, end], axis=0), "frame_size": extent}

    return operation


def random_flip(*, seed: int) -> Operation:
    """Mirrors image and mask window left to right with probability 1/2."""

    def operation(example: Example) -> Example:
        uniform = tf.random.stateless_uniform(
            [], seed=tf.stack([tf.constant(seed, tf.int64), 2 * example["position"] + 1])
        )
        flip = uniform < 0.5
        image, window = example["image"], example["mask_window"]
        image = tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)
        window = tf.cond(flip, lambda: tf.gather(window, [0, 3, 2, 1]), lambda: window)
        return {**example, "image": image, "mask_window": window}

    return operation


def decode_mask(*, size: tuple[int, int]) -> Operation:
    """Decodes a PNG mask of known size, to be resampled on the device.

    An example without mask gets zeros.
    """

    def operation(example: Example) -> Example:
        def decoded() -> tf.Tensor:
            mask = _decode_png_mask(example)
            tf.debugging.Assert(tf.reduce_all(tf.shape(mask) == size), ["another size"])
            return mask

        encoded = example["mask_bytes"]
        mask = tf.cond(tf.strings.length(encoded) > 0, decoded, lambda: tf.zeros(size, tf.uint8))
        return {**example, "core_grid": tf.ensure_shape(mask, size)}

    return operation


def resample_mask(*, image_size: int) -> Operation:
    """Decodes a PNG mask of any size and resamples it bilinearly to the crop.

    Outside the mask's frame the result has no meaning, as `mask_window` tells. An example without
    mask gets zeros.
    """

    def operation(example: Example) -> Example:
        window, encoded = example["mask_window"], example["mask_bytes"]

        def place() -> tf.Tensor:
            mask = _decode_png_mask(example)
            size = tf.cast(tf.shape(mask), tf.float32)
            # Output pixel i lies at window + step * (i + 1/2) from the mask's edge, that is half a
            # pixel further from the first pixel's centre, and one more from that of its border.
            step = (window[2:] - window[:2]) * size / image_size
            first = window[:2] * size + step / 2 - 0.5 + 1
            last = first + step * (image_size - 1)
            # Repeated, the border holds up to the frame's edge. Of TensorFlow's resampling
            # operations this is the fastest for a single channel.
            placed = tf.image.crop_and_resize(
                tf.pad(mask, [[1, 1], [1, 1]], "SYMMETRIC")[None, :, :, None],
                boxes=tf.concat([first / (size + 1), last / (size + 1)], axis=0)[None],
                box_indices=[0],
                crop_size=[image_size] * 2,
            )
            return tf.cast(tf.round(placed[0, :, :, 0]), tf.uint8)

        blank = tf.zeros([image_size] * 2, tf.uint8)
        mask = tf.cond(tf.strings.length(encoded) > 0, place, lambda: blank)
        return {**example, "core_mask": tf.ensure_shape(mask, [image_size, image_size])}

    return operation


def _decode_png_mask(example: Example) -> tf.Tensor:
    """Returns uint8 [h, w], of its frame's aspect ratio."""
    mask = tf.io.decode_png(example["mask_bytes"], channels=1)[:, :, 0]
    size = tf.cast(tf.shape(mask), tf.float32)
    matches = aspects_match(tf.unstack(example["frame_size"]), tf.unstack(size))
    tf.debugging.Assert(matches, ["the mask has another aspect ratio"])
    return mask


def keep(*, keys: Sequence[str]) -> Operation:
    """Drops all but these keys."""
    return lambda example: {key: example[key] for key in keys}


def compose(operations: Sequence[Operation]) -> Operation:
    """Returns the function that applies the operations in order."""

    def composed(example: Example) -> Example:
        for operation in operations:
            example = operation(example)
        return example

    return composed


def training(
    masks: MaskSource, *, image_size: int, area: tuple[float, float], flip: bool, seed: int
) -> list[Operation]:
    """Lists the operations of training: random resized crop and flip.

    Args:
      masks: whose encoding and frame the examples follow.
      image_size: height and width of the result in pixels.
      area: smallest and largest share of the image's area that a crop takes, in (0, 1].
      flip: whether half of the images are mirrored.
      seed: decides crops and flips, together with an example's position.
    """
    crop = random_resized_crop(seed=seed, area=area)
    operations = [read_size, crop, decode(image_size=image_size, antialias=False), _locate(masks)]
    if flip:
        operations.append(random_flip(seed=seed))
    return [*operations, *_finish(masks, image_size)]


def evaluation(masks: MaskSource, *, image_size: int, share: float) -> list[Operation]:
    """Lists the operations of evaluation: the central square, resized.

    Args:
      masks: whose encoding and frame the examples follow.
      image_size: height and width of the result in pixels.
      share: side of the square over the image's shorter side, in (0, 1].
    """
    decoded = decode(image_size=image_size, antialias=True)
    operations = [read_size, center_crop(share=share), decoded, _locate(masks)]
    return [*operations, *_finish(masks, image_size)]


def _locate(masks: MaskSource) -> Operation:
    return locate_in_frame(center_share=center_crop_share(masks.frame))


def _finish(masks: MaskSource, image_size: int) -> list[Operation]:
    keys = ["image", "label", "id", "weight", "has_mask", "mask_window"]
    if masks.encoding == "grid":
        return [keep(keys=[*keys, "core_grid"])]
    # On the device resampling costs next to nothing; but masks larger than the images would cost
    # more to get there than it costs here.
    if masks.size is not None and math.prod(masks.size) <= image_size**2:
        return [decode_mask(size=masks.size), keep(keys=[*keys, "core_grid"])]
    return [resample_mask(image_size=image_size), keep(keys=[*keys, "core_mask"])]

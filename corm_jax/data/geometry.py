"""Where crops and mask frames lie in an image."""

from typing import Any

from corm_jax.errors import UserError


def aspects_match(image: tuple[int, int], mask: tuple[int, int]) -> bool:
    """Returns whether two (height, width) have one aspect ratio, up to rounding by one pixel."""
    deviation = abs(mask[1] * image[0] - mask[0] * image[1])
    return deviation <= max(*image) + max(*mask)


def check_aspect(
    image: tuple[int, int], mask: tuple[int, int], mask_is: str, image_is: str
) -> None:
    """Raises UserError if a mask that covers the whole image has another aspect ratio.

    Args:
      image: (height, width) of the image in pixels.
      mask: (height, width) of the mask in pixels.
      mask_is: what the mask is, for the message.
      image_is: what the image is, for the message.
    """
    if not aspects_match(image, mask):
        raise UserError(
            f"{mask_is} is {mask[1]}x{mask[0]} pixels, {image_is} is {image[1]}x{image[0]}: "
            "another aspect ratio; make the mask in the image's own frame"
        )


def center_crop_share(frame: dict[str, Any]) -> float:
    """Returns the side of a centre-crop frame over the image's shorter side, 0 for other frames."""
    return frame["crop"] / frame["resize"] if frame["type"] == "center_crop" else 0.0

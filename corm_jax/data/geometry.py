"""Where crops and mask frames lie in an image."""

from collections.abc import Sequence
from typing import Any

from corm_jax.errors import UserError


def aspects_match(image: Sequence[Any], mask: Sequence[Any]) -> Any:
    """Returns whether two (height, width) have one aspect ratio, up to rounding by one pixel.

    Made of operators alone, so that it works on numbers and on tensors.
    """
    deviation = abs(mask[1] * image[0] - mask[0] * image[1])
    return (deviation <= image[0] + mask[0]) | (deviation <= image[1] + mask[1])


def check_aspect(
    image: Sequence[float], mask: Sequence[float], mask_is: str, image_is: str
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
            f"{mask_is} is {mask[1]:.0f}x{mask[0]:.0f} pixels, {image_is} is "
            f"{image[1]:.0f}x{image[0]:.0f}: another aspect ratio; make the mask in the image's "
            "own frame"
        )


def center_crop_share(frame: dict[str, Any]) -> float:
    """Returns the side of a centre-crop frame over the image's shorter side, 0 for other frames."""
    return frame["crop"] / frame["resize"] if frame["type"] == "center_crop" else 0.0

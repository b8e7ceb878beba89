"""A forward pass that the terms of one step share, with its derivative to the images."""

from collections.abc import Callable

import jax

from corm_jax.losses.types import Forward, Outputs

# Tangents of images [B, H, W, 3] -> tangents of logits [B, C]; linear.
Push = Callable[[jax.Array], jax.Array]


class SharedForward:
    """A forward that passes images once whose derivative a term takes.

    Terms that then pass the very same array get the same outputs. Without it, reverse mode would
    go through the model once for each of them: XLA merges equal forward passes, but not the
    backward passes of their cotangents' sum. So terms that call `linearize` come first.
    """

    def __init__(self, forward: Forward) -> None:
        """Wraps a forward for the time of one trace."""
        self._forward = forward
        # By identity; the images are held so that no other array takes their place.
        self._passed: dict[int, tuple[jax.Array, Outputs, Push]] = {}

    def __call__(self, images: jax.Array) -> Outputs:
        """Returns (logits, intermediates)."""
        passed = self._passed.get(id(images))
        return self._forward(images) if passed is None else passed[1]

    def linearize(self, images: jax.Array) -> tuple[Outputs, Push]:
        """Returns ((logits, intermediates), derivative of the logits to the images)."""
        if id(images) not in self._passed:
            self._passed[id(images)] = (images, *linearize(self._forward, images))
        return self._passed[id(images)][1:]


def linearize(forward: Forward, images: jax.Array) -> tuple[Outputs, Push]:
    """Returns ((logits, intermediates), derivative of the logits to the images)."""
    if isinstance(forward, SharedForward):
        return forward.linearize(images)
    logits, push, intermediates = jax.linearize(forward, images, has_aux=True)
    return (logits, intermediates), push

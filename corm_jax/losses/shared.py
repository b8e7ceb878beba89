"""Forward passes that the terms of one step share, with their derivatives to the images."""

from collections.abc import Callable
from typing import Any

import jax

from corm_jax.losses.types import Forward, Outputs

# Tangents of images [B, H, W, 3] -> tangents of logits [B, C]; linear.
Push = Callable[[jax.Array], jax.Array]


class SharedForward:
    """A forward that passes the very same array of images once.

    XLA does not merge equal passes reliably, and never the backward passes of their cotangents'
    sum. Terms that call `linearize` come before others that pass the same images.
    """

    def __init__(self, apply: Callable[[jax.Array], tuple[Outputs, Any]]) -> None:
        """Wraps, for the time of one trace, images -> ((logits, intermediates), batch_stats)."""
        self._apply = apply
        # By identity; the images are held so that no other array takes their place.
        self._passed: dict[int, tuple[jax.Array, Outputs, Any]] = {}
        self._pushes: dict[int, Push] = {}

    def __call__(self, images: jax.Array) -> Outputs:
        """Returns (logits, intermediates)."""
        return self._pass(images)[1]

    def batch_stats(self, images: jax.Array) -> Any:
        """Returns the running averages after the pass of the images, else after the first pass."""
        first = next(iter(self._passed.values()))
        return self._passed.get(id(images), first)[2]

    def linearize(self, images: jax.Array) -> tuple[Outputs, Push]:
        """Returns ((logits, intermediates), derivative of the logits to the images)."""
        if id(images) not in self._pushes:

            def with_auxiliary(images: jax.Array) -> tuple[jax.Array, Any]:
                (logits, intermediates), batch_stats = self._apply(images)
                return logits, (intermediates, batch_stats)

            logits, push, (intermediates, batch_stats) = jax.linearize(
                with_auxiliary, images, has_aux=True
            )
            self._passed[id(images)] = (images, (logits, intermediates), batch_stats)
            self._pushes[id(images)] = push
        return self(images), self._pushes[id(images)]

    def _pass(self, images: jax.Array) -> tuple[jax.Array, Outputs, Any]:
        if id(images) not in self._passed:
            self._passed[id(images)] = (images, *self._apply(images))
        return self._passed[id(images)]


def linearize(forward: Forward, images: jax.Array) -> tuple[Outputs, Push]:
    """Returns ((logits, intermediates), derivative of the logits to the images)."""
    if isinstance(forward, SharedForward):
        return forward.linearize(images)
    logits, push, intermediates = jax.linearize(forward, images, has_aux=True)
    return (logits, intermediates), push

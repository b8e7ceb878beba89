"""Forward passes that the terms of one step share, with their derivatives.

To the images, and to `intermediates["maps"]` [B, h, w, K], of which class activation maps are made.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from corm_jax.errors import UserError
from corm_jax.losses.types import Forward, Outputs

# Tangents of images [B, H, W, 3], or of maps, -> tangents of logits [B, C]; linear.
Push = Callable[[jax.Array], jax.Array]


class SharedForward:
    """A forward that passes the very same array of images once.

    XLA does not merge equal passes reliably, and never the backward passes of their cotangents'
    sum. Terms that linearize come before others that pass the same images; linearizing the same
    images both ways takes a pass each.
    """

    def __init__(self, apply: Callable[..., tuple[Outputs, Any]]) -> None:
        """Wraps, for the time of one trace, images -> ((logits, intermediates), batch_stats).

        For `linearize_maps`, `apply` takes the keyword `maps_offset`, which is added to the maps.
        """
        self._apply = apply
        # By identity; the images are held so that no other array takes their place.
        self._passed: dict[int, tuple[jax.Array, Outputs, Any]] = {}
        self._pushes: dict[tuple[str, int], Push] = {}

    def __call__(self, images: jax.Array) -> Outputs:
        """Returns (logits, intermediates)."""
        return self._pass(images)[1]

    def batch_stats(self, images: jax.Array) -> Any:
        """Returns the running averages after the pass of the images, else after the first pass."""
        first = next(iter(self._passed.values()))
        return self._passed.get(id(images), first)[2]

    def linearize(self, images: jax.Array) -> tuple[Outputs, Push]:
        """Returns ((logits, intermediates), derivative of the logits to the images)."""
        key = ("images", id(images))
        if key not in self._pushes:
            self._pushes[key] = self._linearize(images, self._apply, images)
        return self(images), self._pushes[key]

    def linearize_maps(self, images: jax.Array) -> tuple[Outputs, Push]:
        """Returns ((logits, intermediates), derivative of the logits to the maps).

        It is that of the layers above the maps alone, and costs no more than these.
        """
        key = ("maps", id(images))
        if key not in self._pushes:
            self._pushes[key] = self._linearize(
                images,
                lambda offset: self._apply(images, maps_offset=offset),
                _no_offset(jax.eval_shape(self._apply, images)[0]),
            )
        return self(images), self._pushes[key]

    def _linearize(
        self, images: jax.Array, function: Callable[..., tuple[Outputs, Any]], at: jax.Array
    ) -> Push:
        def with_auxiliary(at: jax.Array) -> tuple[jax.Array, Any]:
            (logits, intermediates), batch_stats = function(at)
            return logits, (intermediates, batch_stats)

        logits, push, (intermediates, batch_stats) = jax.linearize(with_auxiliary, at, has_aux=True)
        self._passed.setdefault(id(images), (images, (logits, intermediates), batch_stats))
        return push

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


def linearize_maps(forward: Forward, images: jax.Array) -> tuple[Outputs, Push]:
    """Returns ((logits, intermediates), derivative of the logits to `intermediates["maps"]`).

    Args:
      forward: takes the keyword `maps_offset`, added to the maps, as our models do.
      images: float [B, H, W, 3].

    Raises:
      UserError: if the model has no maps.
    """
    if isinstance(forward, SharedForward):
        return forward.linearize_maps(images)
    logits, push, intermediates = jax.linearize(
        lambda offset: forward(images, maps_offset=offset),
        _no_offset(jax.eval_shape(forward, images)),
        has_aux=True,
    )
    return (logits, intermediates), push


def _no_offset(outputs: Outputs) -> jax.Array:
    """Returns zeros of the shape of the maps in abstract outputs."""
    maps = outputs[1].get("maps")
    if maps is None:
        raise UserError("class activation maps need a model that returns `maps` beside its logits")
    return jnp.zeros(maps.shape, maps.dtype)

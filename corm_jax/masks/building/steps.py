"""What is computed of a batch of images, on the device, and how results get off it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from corm_jax.masks.building.encoder import Encoder, activation_maps
from corm_jax.sharding import put_batch

Arrays = dict[str, np.ndarray]
Batch = dict[str, jax.Array]
Step = Callable[[Batch], Batch]
FLOAT16_MAX = float(np.finfo(np.float16).max)


def make_scan_step(encoder: Encoder, candidates: int) -> Step:
    """Compiles what is computed of each image.

    Args:
      encoder: with its variables on the devices.
      candidates: number of channels whose maps are kept, those with the largest activation * weight
        of the image's label; 0 for all channels, in their order.

    Returns:
      {"image" uint8 [B, S, S, 3], "label" int32 [B]} -> predicted, activations, candidates and maps
      as `corm_jax.masks.building.store` describes them.
    """
    weight_of_class = jnp.asarray(encoder.head_weight.T)

    def step(variables: dict, weight_of_class: jax.Array, batch: Batch) -> Batch:
        logits, activations, maps = encoder.encode(variables, _pixels(batch))
        scores = activations * weight_of_class[batch["label"]]
        channels = jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape)
        if candidates:
            channels = jax.lax.top_k(scores, min(candidates, scores.shape[1]))[1]
        return {
            "predicted": logits.argmax(axis=-1).astype(jnp.int32),
            "activations": jnp.clip(activations, -FLOAT16_MAX, FLOAT16_MAX).astype(jnp.float16),
            "candidates": channels.astype(jnp.uint16),
            "maps": _stored_maps(maps, channels),
        }

    return partial(jax.jit(step), encoder.variables, weight_of_class)


def make_map_step(encoder: Encoder) -> Step:
    """Compiles the maps of given features.

    Returns:
      {"image" uint8 [B, S, S, 3], "features" int32 [B, F]} -> {"maps": uint8 [B, F, h, w]}.
    """

    def step(variables: dict, batch: Batch) -> Batch:
        _, _, maps = encoder.encode(variables, _pixels(batch))
        return {"maps": _stored_maps(maps, batch["features"])}

    return partial(jax.jit(step), encoder.variables)


def _pixels(batch: Batch) -> jax.Array:
    return batch["image"].astype(jnp.float32) / 255.0


def _stored_maps(maps: jax.Array, channels: jax.Array) -> jax.Array:
    """Returns uint8 [B, k, h, w]: maps [B, h, w, C] of channels [B, k], each over its maximum."""
    chosen = jnp.take_along_axis(maps, channels[:, None, None, :], axis=-1)
    return jnp.round(activation_maps(chosen) * 255.0).astype(jnp.uint8).transpose(0, 3, 1, 2)


def outputs(step: Step, batches: Iterable[Arrays], mesh: Mesh) -> Iterator[Arrays]:
    """Yields what a step computes of each batch, fetched while the next one is computed.

    Args:
      step: as `make_scan_step` compiles it.
      batches: the step's inputs.
      mesh: where the step runs.
    """
    running: deque[Batch] = deque()
    for batch in batches:
        result = step(put_batch(batch, mesh))
        for array in result.values():
            array.copy_to_host_async()
        running.append(result)
        if len(running) > 1:
            yield jax.device_get(running.popleft())
    while running:
        yield jax.device_get(running.popleft())

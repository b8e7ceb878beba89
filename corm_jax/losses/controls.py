"""Controls: wrong masks for training, to tell what the masks do from what the noise does.

A control is a pure function (batch, key) -> batch that changes `core_mask` and `mask_valid` of an
expanded batch (`corm_jax.steps.expand_batch`) before `non_core` is computed from them. Images keep
`has_mask`, so that the same images are corrupted and penalised under every control. Evaluation
keeps the true masks. How far masks move or grow is a project choice, relative to the image's size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from corm_jax.corruptions import random_partners
from corm_jax.losses.types import Batch
from corm_jax.masks.morphology import ARM, dilate

Control = Callable[[Batch, jax.Array], Batch]

REACH = 1 / 16  # of dilation and erosion, over the image's height
SHIFT = 1 / 8  # along each axis, over the image's height


def none(batch: Batch, key: jax.Array) -> Batch:
    """The masks as they are: no control."""
    del key
    return batch


def shuffled(batch: Batch, key: jax.Array) -> Batch:
    """Another image's mask, with its validity: the next in a random cycle through those with one.

    The shapes, sizes and places of real objects, on the wrong images. The only image with a mask
    keeps it. Padding (weight 0) lends none.
    """
    partners = random_partners(key, (batch["has_mask"] > 0) & (batch["weight"] > 0))
    moved = {name: batch[name][partners] for name in ("core_mask", "mask_valid")}
    return {**batch, **moved}


def random(batch: Batch, key: jax.Array) -> Batch:
    """The image's own mask mirrored and moved at random: the same area and shape elsewhere.

    Mask and validity are mirrored along each axis by chance and rolled, around the image's edges,
    by uniform offsets: every pixel is as likely as any other to become core, and the sums of
    `core_mask` and `non_core` are exactly those of the true mask.
    """
    maps = jnp.concatenate([batch["core_mask"], batch["mask_valid"]], axis=-1)
    maps = jax.vmap(move_at_random)(maps, jax.random.split(key, len(maps)))
    return {**batch, "core_mask": maps[..., :1], "mask_valid": maps[..., 1:]}


def move_at_random(maps: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors maps [H, W, C] along each axis by chance and rolls them by uniform offsets."""
    flip_key, row_key, column_key = jax.random.split(key, 3)
    vertical, horizontal = jax.random.bernoulli(flip_key, shape=(2,))
    maps = jnp.where(vertical, maps[::-1], maps)
    maps = jnp.where(horizontal, maps[:, ::-1], maps)
    offsets = (
        jax.random.randint(row_key, (), 0, maps.shape[0]),
        jax.random.randint(column_key, (), 0, maps.shape[1]),
    )
    return jnp.roll(maps, offsets, axis=(0, 1))


def whole(batch: Batch, key: jax.Array) -> Batch:
    """No core: everything that the mask says something about is non-core."""
    del key
    return {**batch, "core_mask": jnp.zeros_like(batch["core_mask"])}


def dilated(batch: Batch, key: jax.Array) -> Batch:
    """The core grown by `REACH`."""
    del key
    core = dilate(batch["core_mask"], _times(batch)) * batch["mask_valid"]
    return {**batch, "core_mask": core}


def eroded(batch: Batch, key: jax.Array) -> Batch:
    """The core shrunk by `REACH`; thinner ones vanish. Only known non-core eats into it."""
    del key
    non_core = batch["mask_valid"] * (1.0 - batch["core_mask"])
    core = batch["mask_valid"] * (1.0 - dilate(non_core, _times(batch)))
    return {**batch, "core_mask": core}


def _times(batch: Batch) -> int:
    """Returns how many dilations reach `REACH` of the image's height; at least one."""
    return max(1, round(REACH * batch["core_mask"].shape[1] / ARM))


def shifted(batch: Batch, key: jax.Array) -> Batch:
    """The core `SHIFT` off along both axes, in one of the four diagonal directions by chance.

    What leaves the image, or what is known of it, is lost.
    """
    size, height, width, _ = batch["core_mask"].shape
    distance = max(1, round(SHIFT * height))
    margins = ((distance, distance), (distance, distance), (0, 0))

    def move(core: jax.Array, direction: jax.Array) -> jax.Array:
        start = (2 * distance * direction[0], 2 * distance * direction[1], 0)
        return jax.lax.dynamic_slice(jnp.pad(core, margins), start, (height, width, 1))

    directions = jax.random.bernoulli(key, shape=(size, 2)).astype(jnp.int32)
    core = jax.vmap(move)(batch["core_mask"], directions)
    return {**batch, "core_mask": core * batch["mask_valid"]}


CONTROLS: dict[str, Control] = {
    "none": none,
    "shuffled": shuffled,
    "random": random,
    "whole": whole,
    "dilated": dilated,
    "eroded": eroded,
    "shifted": shifted,
}

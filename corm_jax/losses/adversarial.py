"""Cross entropy on images that an adversary changed in a region: projected gradient descent."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from corm_jax.errors import lookup
from corm_jax.losses.types import Batch, Forward, Losses
from corm_jax.losses.views import REGIONS, WITHOUT_MASK


class Ball(NamedTuple):
    """What an attack needs to know of a norm; arrays are float32 [B, H, W, 3].

    Attributes:
      start: (key, inside) -> a random point in the unit ball, 0 where `inside` is.
      direction: gradient -> the step of length 1 that raises the loss most; 0 where it is 0.
      project: (point, radius) -> the nearest point in the ball.
    """

    start: Callable[[jax.Array, jax.Array], jax.Array]
    direction: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, float], jax.Array]


def _l2(values: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(values).sum(axis=(1, 2, 3), keepdims=True))


def _l2_direction(gradient: jax.Array) -> jax.Array:
    # Over the largest value first: squares of small gradients leave the range of float32.
    largest = jnp.abs(gradient).max(axis=(1, 2, 3), keepdims=True)
    scaled = gradient / jnp.where(largest > 0, largest, 1.0)
    return scaled / jnp.maximum(_l2(scaled), 1.0)


def _l2_start(key: jax.Array, inside: jax.Array) -> jax.Array:
    """Returns points of uniform direction and uniform length: denser near 0 than the ball."""
    direction_key, length_key = jax.random.split(key)
    directions = _l2_direction(jax.random.normal(direction_key, inside.shape) * inside)
    return directions * jax.random.uniform(length_key, (len(inside), 1, 1, 1))


def _l2_project(points: jax.Array, radius: float) -> jax.Array:
    return points * jnp.minimum(1.0, radius / jnp.maximum(_l2(points), 1e-12))


def _linf_start(key: jax.Array, inside: jax.Array) -> jax.Array:
    return jax.random.uniform(key, inside.shape, minval=-1.0, maxval=1.0) * inside


NORMS = {
    "linf": Ball(_linf_start, jnp.sign, lambda points, radius: jnp.clip(points, -radius, radius)),
    "l2": Ball(_l2_start, _l2_direction, _l2_project),
}


def adversarial(
    forward: Forward,
    batch: Batch,
    key: jax.Array,
    *,
    norm: str,
    radius: float,
    step_size: float,
    steps: int,
    random_start: bool,
    region: str,
    without_mask: str,
) -> Losses:
    """Cross entropy on the images that projected gradient descent finds in a region.

    The attack maximises an image's cross entropy over x + r * u, r the region, ||u|| <= radius,
    within [0, 1]; a soft region scales the change. With g = dL/dx there, a step is

        linf    u <- u + step_size * sign(r * g)
        l2      u <- u + step_size * r * g / ||r * g||_2

    followed by the projection of u onto the ball, then of x + r * u onto [0, 1]. The weights'
    gradient takes the attack as given. Batch statistics in the attack are the attacked batch's, as
    in training. The cost is `steps` forward and backward passes beside the loss's own.

    Args:
      forward: see `corm_jax.losses.terms`.
      batch: see `corm_jax.losses.terms`.
      key: PRNG key of the start.
      norm: of u for each image: "linf" (the largest change of a value) or "l2".
      radius: of the ball, in [0, 1] pixel units.
      step_size: in the same units.
      steps: number of gradient steps.
      random_start: whether u starts at random in the ball instead of at 0: uniform for linf, of
        uniform direction and length for l2.
      region: "non_core", "core" or "whole".
      without_mask: "clean" or "zero"; see `corm_jax.losses.noisy.noisy_cross_entropy`.

    Source: Madry et al. 2018 (arXiv:1706.06083); inside the non-core region, PGD-Ex of Heo et al.
    2023 ("Use Perturbations when Learning from Explanations").
    """
    where = lookup(REGIONS, region, "region")(batch)
    images = attack(
        *(forward, batch["image"], batch["target"], where, key),
        norm=norm,
        radius=radius,
        step_size=step_size,
        steps=steps,
        random_start=random_start,
    )
    losses = optax.softmax_cross_entropy(forward(images)[0], batch["target"])
    return lookup(WITHOUT_MASK, without_mask, "without_mask")(losses, batch["has_mask"]), {}


def attack(
    forward: Forward,
    images: jax.Array,
    target: jax.Array,
    region: jax.Array,
    key: jax.Array,
    *,
    norm: str,
    radius: float,
    step_size: float,
    steps: int,
    random_start: bool,
) -> jax.Array:
    """Returns attacked images, float32 [B, H, W, 3] in [0, 1], without gradient.

    Args:
      forward: see `corm_jax.losses.terms`.
      images: float32 [B, H, W, 3] in [0, 1].
      target: float32 [B, C].
      region: float32 [B, H, W, 1] in [0, 1].
      key: PRNG key of the start.
      norm: see `adversarial`, as for all that follow.
      radius: of the ball.
      step_size: of a step.
      steps: how many.
      random_start: whether to start at random.
    """
    ball = lookup(NORMS, norm, "norm")
    divisor = jnp.where(region > 0, region, 1.0)

    def total(images: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(forward(images)[0], target).sum()

    def project(change: jax.Array) -> jax.Array:
        change = ball.project(change, radius)
        return jnp.clip(change, -images / divisor, (1.0 - images) / divisor)

    def step(_: int, change: jax.Array) -> jax.Array:
        gradient = jax.grad(total)(images + region * change)
        return project(change + step_size * ball.direction(region * gradient))

    change = jnp.zeros_like(images)
    if random_start:
        inside = jnp.broadcast_to(region > 0, images.shape).astype(images.dtype)
        change = project(radius * ball.start(key, inside))
    change = jax.lax.fori_loop(0, steps, step, change)
    # Nothing follows the weights through the attack: XLA drops what their derivative would need.
    return jax.lax.stop_gradient(jnp.clip(images + region * change, 0.0, 1.0))

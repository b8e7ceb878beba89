"""Feature attack: an image is changed until a feature is much more active.

What grows in the image shows what the feature responds to (Singla et al., CVPR 2021,
arXiv:2011.12824; Singla and Feizi 2022, arXiv:2110.04301). Gradient ascent in [0, 1] pixel space,
steps normalised in L2, within an L2 ball around the image. The numbers are a project choice: they
grow with the image's side, so that a pixel changes as much at any size. At 224 pixels a step
changes a pixel by 0.02 on average (root mean square), all steps by 0.26 at most.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from corm_jax.masks.building.encoder import Encoder

STEPS = 25
STEP_PER_SIDE = 8 / 224  # L2 length of a step over the image's side in pixels
RADIUS_PER_SIDE = 100 / 224  # L2 radius of the ball over the image's side

Attack = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def feature_attack(
    activation: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    *,
    step: float,
    radius: float,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Raises the activation of a feature by gradient ascent.

    Args:
      activation: images float32 [B, S, S, 3] -> activations float32 [B], each of its own image.
      images: float32 [B, S, S, 3] in [0, 1].
      step: L2 length of a step; an image of zero gradient stays as it is.
      radius: largest L2 distance from the image.
      steps: their number.

    Returns:
      (attacked images float32 [B, S, S, 3] in [0, 1], activations float32 [steps + 1, B] before
      the first and after each step).
    """

    def total(changed: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = activation(changed)
        return values.sum(), values

    def move(changed: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        gradient, values = jax.grad(total, has_aux=True)(changed)
        norm = _norm(gradient)
        offset = changed + step * gradient / jnp.where(norm > 0, norm, 1.0) - images
        offset *= jnp.minimum(1.0, radius / jnp.maximum(_norm(offset), radius))
        return jnp.clip(images + offset, 0.0, 1.0), values

    attacked, values = jax.lax.scan(move, images, length=steps)
    return attacked, jnp.concatenate([values, activation(attacked)[None]])


def _norm(images: jax.Array) -> jax.Array:
    """Returns float32 [B, 1, 1, 1]: the L2 norm of each image."""
    return jnp.sqrt(jnp.sum(images**2, axis=(1, 2, 3), keepdims=True))


def make_attack(encoder: Encoder) -> Attack:
    """Compiles the attack on any feature of an encoder.

    Returns:
      (images uint8 [B, S, S, 3], feature) -> (attacked uint8 [B, S, S, 3], activations float32
      [STEPS + 1, B]).
    """
    side = encoder.image_size

    @jax.jit
    def run(variables: dict, images: jax.Array, feature: jax.Array) -> tuple[jax.Array, jax.Array]:
        attacked, values = feature_attack(
            lambda changed: encoder.encode(variables, changed)[1][:, feature],
            images.astype(jnp.float32) / 255.0,
            step=STEP_PER_SIDE * side,
            radius=RADIUS_PER_SIDE * side,
            steps=STEPS,
        )
        return jnp.round(attacked * 255.0).astype(jnp.uint8), values

    def attack(images: np.ndarray, feature: int) -> tuple[np.ndarray, np.ndarray]:
        return jax.device_get(run(encoder.variables, images, jnp.int32(feature)))

    return attack

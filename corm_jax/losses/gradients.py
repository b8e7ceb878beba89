"""Penalties on the gradient to the image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from corm_jax.errors import lookup
from corm_jax.losses.noisy import noisy_view
from corm_jax.losses.types import Batch, Forward, Losses


def input_gradient(
    forward: Forward,
    batch: Batch,
    key: jax.Array,
    *,
    of: str,
    sigma: float,
    probability: float,
) -> Losses:
    """Mean squared input gradient outside the core: mean((dL/dx * (1 - m))^2) over H, W, 3.

    L belongs to one image, so that the penalty depends on neither the batch's size nor its other
    images (project choice; with batch normalisation they still meet in the statistics). The step
    differentiates through dL/dx: the penalty reaches the weights by double backprop.

    Args:
      forward: see `corm_jax.losses.terms`.
      batch: see `corm_jax.losses.terms`.
      key: PRNG key.
      of: what L is: "loss" takes the image's cross entropy (Hard ImageNet, Moayeri et al. 2022),
        whose gradient vanishes where the model is confident and right; "log_probabilities" the
        mean over classes of log softmax(f(x)), whose gradient does not (right for the right
        reasons, Ross et al. 2017, who take the sum).
      sigma: standard deviation of the noise outside the core on the images where the gradient is
        taken; the same noise as `noisy_cross_entropy`'s of equal arguments.
      probability: of each image to be corrupted, in [0, 1]; 0 takes clean images.

    Returns:
      (losses float32 [B], computed in float32 whatever the model's dtype: squares of small
      gradients leave half precision's range; logs `input_gradient_norm`, the mean over images of
      the gradient's L2 norm outside the core).
    """
    differentiated = lookup(GRADIENT_OF, of, "of")
    images = batch["image"]
    if probability > 0 and sigma > 0:
        images = noisy_view(batch, key, sigma=sigma, probability=probability)

    def total(images: jax.Array) -> jax.Array:
        return differentiated(forward(images)[0], batch["target"]).sum()

    gradients = jax.grad(total)(images).astype(jnp.float32) * batch["non_core"]
    squares = jnp.square(gradients).sum(axis=(1, 2, 3))
    norm = jnp.sqrt(jax.lax.stop_gradient(squares)).mean()
    size = gradients.shape[1] * gradients.shape[2] * gradients.shape[3]
    return squares / size, {"input_gradient_norm": norm}


def _mean_log_probability(logits: jax.Array, target: jax.Array) -> jax.Array:
    del target
    return jax.nn.log_softmax(logits).mean(axis=-1)


GRADIENT_OF: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "loss": optax.softmax_cross_entropy,
    "log_probabilities": _mean_log_probability,
}

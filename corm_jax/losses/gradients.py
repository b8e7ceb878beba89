"""Penalties on the gradient to the image.

The penalty P(g) of the input gradient g = dL/dx has to reach the weights w, through dP/dw =
v . dg/dw with v = dP/dg. There are two exact ways, chosen by the model's kind:

- Reverse mode over reverse mode: differentiate the backward pass that gave g. Fewest operations
  (2.0 times those of a step on L alone, with the forward pass shared), the choice for transformers.
- Reverse mode over forward mode: v held, v . dg/dw = d/dw (dL/dx . v), the derivative of one
  directional derivative. A sixth more operations, but none is the derivative of a backward pass:
  the weight gradient of a strided convolution's backward pass, and that of max pooling's, are what
  XLA computes slowest on a CPU. The choice for convolutional networks.

`benchmarks/objectives.py` measures both.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from corm_jax.errors import lookup
from corm_jax.losses.noisy import noisy_view
from corm_jax.losses.shared import Push, linearize
from corm_jax.losses.types import Batch, Forward, Losses


def input_gradient(
    forward: Forward,
    batch: Batch,
    key: jax.Array,
    *,
    of: str,
    norm: str,
    sigma: float,
    probability: float,
) -> Losses:
    """Mean input gradient outside the core, squared or absolute, over H, W, 3.

    P = mean((dL/dx * (1 - m))^2), or mean(|dL/dx * (1 - m)|). L belongs to one image, so that the
    penalty depends on neither the batch's size nor its other images (project choice; with batch
    normalisation they still meet in the statistics, and dL/dx is of the sum over the images of
    weight 1). The gradient of P's weighted mean reaches the weights, exactly.

    Args:
      forward: see `corm_jax.losses.terms`.
      batch: see `corm_jax.losses.terms`.
      key: PRNG key.
      of: what L is, a key of `GRADIENT_OF`: "loss" takes the image's cross entropy (Hard ImageNet,
        Moayeri et al. 2022), whose gradient vanishes where the model is confident and right;
        "true_logit" the target's logit; "log_probabilities" the mean over classes of
        log softmax(f(x)), "log_probabilities_sum" their sum (right for the right reasons, Ross et
        al. 2017), whose gradients do not vanish.
      norm: "l2" (squared, as in both sources) or "l1".
      sigma: standard deviation of the noise outside the core on the images where the gradient is
        taken; the same noise as `noisy_cross_entropy`'s of equal arguments.
      probability: of each image to be corrupted, in [0, 1]; 0 takes clean images.

    Returns:
      (losses float32 [B], computed in float32 whatever the model's dtype: squares of small
      gradients leave half precision's range; logs `input_gradient_norm`, the mean over images of
      the gradient's L2 norm outside the core).
    """
    differentiated = lookup(GRADIENT_OF, of, "of")
    penalty_of = lookup(GRADIENT_NORMS, norm, "norm")
    images = batch["image"]
    if probability > 0 and sigma > 0:
        images = noisy_view(batch, key, sigma=sigma, probability=probability)
    (logits, intermediates), push = linearize(forward, images)

    def each(logits: jax.Array) -> jax.Array:
        return differentiated(logits, batch["target"]) * batch["weight"]

    def penalty(gradients: jax.Array) -> jax.Array:
        return penalty_of(gradients.astype(jnp.float32) * batch["non_core"])

    gradients = _pull(push, images, jax.grad(lambda logits: each(logits).sum())(logits))
    if _is_convolutional(intermediates):
        losses = _held(penalty, gradients, batch["weight"], each, logits, push)
    else:
        losses = penalty(gradients)
    outside = jax.lax.stop_gradient(gradients).astype(jnp.float32) * batch["non_core"]
    length = jnp.sqrt(jnp.square(outside).sum(axis=(1, 2, 3))).mean()
    return losses, {"input_gradient_norm": length}


def _pull(push: Push, images: jax.Array, cotangent: jax.Array) -> jax.Array:
    """Returns the input gradient [B, H, W, 3] of a cotangent of the logits [B, C]."""
    return jax.linear_transpose(push, images)(cotangent)[0]


def _held(
    penalty: Callable[[jax.Array], jax.Array],
    gradients: jax.Array,
    weight: jax.Array,
    each: Callable[[jax.Array], jax.Array],
    logits: jax.Array,
    push: Push,
) -> jax.Array:
    """Returns the penalty [B] with its gradient by reverse over forward mode.

    Where images meet in batch normalisation, an image's directional derivative holds its part of
    every image's penalty: the weighted mean's gradient is exact, a single image's is not.
    """
    gradients = jax.lax.stop_gradient(gradients)
    values = penalty(gradients)
    direction = jax.grad(lambda g: (penalty(g) * weight).sum())(gradients)
    _, slopes = jax.jvp(each, (logits,), (push(direction),))
    return values + slopes - jax.lax.stop_gradient(slopes)


def _is_convolutional(intermediates: dict[str, jax.Array]) -> bool:
    """Returns whether a model has stages of feature maps."""
    return any(name.startswith("stage") for name in intermediates)


def _true_logit(logits: jax.Array, target: jax.Array) -> jax.Array:
    return (logits * target).sum(axis=-1)


def _mean_log_probability(logits: jax.Array, target: jax.Array) -> jax.Array:
    del target
    return jax.nn.log_softmax(logits).mean(axis=-1)


def _sum_log_probability(logits: jax.Array, target: jax.Array) -> jax.Array:
    del target
    return jax.nn.log_softmax(logits).sum(axis=-1)


# (logits [B, C], target [B, C]) -> [B], what the input gradient is of.
GRADIENT_OF: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "loss": optax.softmax_cross_entropy,
    "true_logit": _true_logit,
    "log_probabilities": _mean_log_probability,
    "log_probabilities_sum": _sum_log_probability,
}

# Input gradients [B, H, W, 3] -> [B].
GRADIENT_NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "l2": lambda gradients: jnp.square(gradients).mean(axis=(1, 2, 3)),
    "l1": lambda gradients: jnp.abs(gradients).mean(axis=(1, 2, 3)),
}

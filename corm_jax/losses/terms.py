"""Terms of training objectives.

A term is a pure function (forward, batch, key, ...) -> (losses, logs):

    forward   images float32 [B, H, W, 3] in [0, 1] -> logits float32 [B, C]; closes over the
              parameters that the step differentiates
    batch     `image` float32 [B, H, W, 3] in [0, 1], `target` float32 [B, C] (each row sums to 1),
              `non_core` float32 [B, H, W, 1] in [0, 1] (validity * (1 - core mask)), `has_mask`
              float32 [B]
    key       PRNG key of this step; terms given equal arguments draw equal noise
    losses    float32 [B], neither averaged nor weighted
    logs      dict of float32 scalars to log

For an image without mask `non_core` is zero.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from corm_jax.corruptions import gaussian_noise
from corm_jax.errors import UserError, lookup, nearest

Forward = Callable[[jax.Array], jax.Array]
Batch = dict[str, jax.Array]
Logs = dict[str, jax.Array]
Term = Callable[[Forward, Batch, jax.Array], tuple[jax.Array, Logs]]


def cross_entropy(forward: Forward, batch: Batch, key: jax.Array) -> tuple[jax.Array, Logs]:
    """Cross entropy on the images as they are: -sum_c target_c log softmax(f(x))_c."""
    del key
    return optax.softmax_cross_entropy(forward(batch["image"]), batch["target"]), {}


def noisy_view(batch: Batch, key: jax.Array, *, sigma: float, probability: float) -> jax.Array:
    """Returns images with Gaussian noise outside the core: clip(x + sigma * n * (1 - m), 0, 1).

    Args:
      batch: see the module's docstring.
      key: PRNG key.
      sigma: standard deviation in [0, 1] pixel units.
      probability: of each image to be corrupted, in [0, 1]; the others stay as they are.
    """
    noise_key, choice_key = jax.random.split(key)
    noisy = gaussian_noise(batch["image"], batch["non_core"], noise_key, sigma=sigma)
    if probability >= 1:
        return noisy
    chosen = jax.random.bernoulli(choice_key, probability, (len(noisy), 1, 1, 1))
    return jnp.where(chosen, noisy, batch["image"])


def noisy_cross_entropy(
    forward: Forward,
    batch: Batch,
    key: jax.Array,
    *,
    sigma: float,
    probability: float,
    without_mask: str,
) -> tuple[jax.Array, Logs]:
    """Cross entropy on images with Gaussian noise outside the core.

    Args:
      forward: see the module's docstring.
      batch: see the module's docstring.
      key: PRNG key.
      sigma: standard deviation of the noise in [0, 1] pixel units.
      probability: of each image to be corrupted, in [0, 1].
      without_mask: the loss of an image without mask: "clean" takes its cross entropy (for use
        instead of `cross_entropy`), "zero" nothing (for use beside it), so that in both an image
        without mask contributes exactly its cross entropy to the objective.

    Source: Hard ImageNet (Moayeri et al. 2022) with probability 1/2, MLX (Heo et al. 2023) with 1.
    """
    images = noisy_view(batch, key, sigma=sigma, probability=probability)
    losses = optax.softmax_cross_entropy(forward(images), batch["target"])
    return lookup(WITHOUT_MASK, without_mask, "without_mask")(losses, batch["has_mask"]), {}


# What images without mask (has_mask 0) lose in `noisy_cross_entropy`.
WITHOUT_MASK: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "clean": lambda losses, has_mask: losses,
    "zero": lambda losses, has_mask: losses * has_mask,
}


def input_gradient(
    forward: Forward,
    batch: Batch,
    key: jax.Array,
    *,
    of: str,
    sigma: float,
    probability: float,
) -> tuple[jax.Array, Logs]:
    """Mean squared input gradient outside the core: mean((dL/dx * (1 - m))^2) over H, W, 3.

    L belongs to one image, so that the penalty depends on neither the batch's size nor its other
    images (project choice; with batch normalisation they still meet in the statistics). The step
    differentiates through dL/dx: the penalty reaches the weights by double backprop.

    Args:
      forward: see the module's docstring.
      batch: see the module's docstring.
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
        return differentiated(forward(images), batch["target"]).sum()

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


TERMS: dict[str, Callable[..., tuple[jax.Array, Logs]]] = {
    "cross_entropy": cross_entropy,
    "noisy_cross_entropy": noisy_cross_entropy,
    "input_gradient": input_gradient,
}

# Parameters that are one of a few words.
CHOICES = {"of": GRADIENT_OF, "without_mask": WITHOUT_MASK}


def build(terms: dict[str, dict[str, Any]]) -> dict[str, tuple[float, Term]]:
    """Builds an objective from config data.

    Args:
      terms: label -> {"term": a key of `TERMS`, "weight": float, and the term's parameters}.

    Returns:
      label -> (weight, term of (forward, batch, key)).

    Raises:
      UserError: if a term or a parameter is unknown or missing; names it.
    """
    if not terms:
        raise UserError("config.terms is empty: an objective needs one term or more")
    built = {}
    for label, description in terms.items():
        where = f"config.terms.{label}"
        name = description.get("term", "")
        function = lookup(TERMS, name, f"loss term in {where}.term:")
        parameters = {k: v for k, v in description.items() if k not in ("term", "weight")}
        signature = inspect.signature(function).parameters.values()
        valid = {p.name for p in signature if p.kind is inspect.Parameter.KEYWORD_ONLY}
        for key in sorted(set(parameters) - valid):
            raise UserError(f"{where}.{key}: {name} has no such parameter{nearest(key, valid)}")
        for key in sorted((valid | {"weight"}) - set(description)):
            raise UserError(f"{where}.{key} is missing: {name} needs it")
        for key in CHOICES.keys() & parameters.keys():
            lookup(CHOICES[key], parameters[key], f"{where}.{key}")
        built[label] = (float(description["weight"]), partial(function, **parameters))
    return built

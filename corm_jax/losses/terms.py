"""Terms of training objectives.

A term is a pure function (forward, batch, key, ...) -> (losses, logs):

    forward   images float32 [B, H, W, 3] in [0, 1] -> (logits float32 [B, C], intermediates: the
              model's dict of them); closes over the parameters that the step differentiates; its
              derivatives are had through `corm_jax.losses.shared`
    batch     `image` float32 [B, H, W, 3] in [0, 1]; `target` float32 [B, C], each row sums to 1;
              `core_mask`, `mask_valid` and `non_core` float32 [B, H, W, 1] in [0, 1], non_core =
              mask_valid * (1 - core_mask); `has_mask` and `weight` float32 [B], weight 0 for
              padding; `views`, not of a loaded batch but of a step, holds views already made
    key       PRNG key of this step (or microbatch); terms given equal arguments draw equal noise
    losses    float32 [B], neither averaged nor weighted
    logs      dict of float32 scalars to log

For an image without mask `core_mask`, `mask_valid` and `non_core` are zero.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from corm_jax.errors import UserError, lookup, nearest
from corm_jax.losses.adversarial import NORMS, adversarial
from corm_jax.losses.cam import CAM_LOSSES, cam_alignment
from corm_jax.losses.cfce import cfce
from corm_jax.losses.consistency import consistency
from corm_jax.losses.gradients import GRADIENT_NORMS, GRADIENT_OF, input_gradient
from corm_jax.losses.noisy import noisy_cross_entropy
from corm_jax.losses.swap import background_swap
from corm_jax.losses.types import Batch, Forward, Losses, Term
from corm_jax.losses.views import CORRUPTED_VIEW, PROBABILITY_PER, REGIONS, WITHOUT_MASK
from corm_jax.saliency import CAM_METHODS


def cross_entropy(forward: Forward, batch: Batch, key: jax.Array) -> Losses:
    """Cross entropy on the images as they are: -sum_c target_c log softmax(f(x))_c."""
    del key
    return optax.softmax_cross_entropy(forward(batch["image"])[0], batch["target"]), {}


TERMS: dict[str, Callable[..., Losses]] = {
    "cross_entropy": cross_entropy,
    "noisy_cross_entropy": noisy_cross_entropy,
    "background_swap": background_swap,
    "consistency": consistency,
    "adversarial": adversarial,
    "input_gradient": input_gradient,
    "cam_alignment": cam_alignment,
    "cfce": cfce,
}

# Parameters that are one of a few words, by term.
CHOICES: dict[str, dict[str, dict[str, Any]]] = {
    "noisy_cross_entropy": {**CORRUPTED_VIEW, "without_mask": WITHOUT_MASK},
    "background_swap": {"probability_per": PROBABILITY_PER, "without_mask": WITHOUT_MASK},
    "consistency": CORRUPTED_VIEW,
    "adversarial": {"norm": NORMS, "region": REGIONS, "without_mask": WITHOUT_MASK},
    "input_gradient": {"of": GRADIENT_OF, "norm": GRADIENT_NORMS},
    "cam_alignment": {"method": CAM_METHODS, "loss": CAM_LOSSES},
    "cfce": {"without_mask": WITHOUT_MASK},
}


# What every term has beside its own parameters.
COMMON = ("term", "weight", "initial_weight", "transition_steps")


def build(terms: dict[str, dict[str, Any]]) -> dict[str, tuple[float | optax.Schedule, Term]]:
    """Builds an objective from config data.

    Args:
      terms: label -> {"term": a key of `TERMS`, "weight": float, "initial_weight": float,
        "transition_steps": int, and the term's parameters}. Over the first `transition_steps` of
        training the weight goes linearly from `initial_weight` to `weight`, and stays there; with
        `transition_steps` 0 it is constant, and `initial_weight` unused.

    Returns:
      label -> (weight: a float, or a function of the step if it changes; term of
      (forward, batch, key)).

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
        parameters = {k: v for k, v in description.items() if k not in COMMON}
        signature = inspect.signature(function).parameters.values()
        valid = {p.name for p in signature if p.kind is inspect.Parameter.KEYWORD_ONLY}
        for key in sorted(set(parameters) - valid):
            raise UserError(f"{where}.{key}: {name} has no such parameter{nearest(key, valid)}")
        for key in sorted((valid | set(COMMON)) - set(description)):
            raise UserError(f"{where}.{key} is missing: {name} needs it")
        for key, choices in CHOICES.get(name, {}).items():
            lookup(choices, parameters[key], f"{where}.{key}")
        built[label] = (_weight(description), partial(function, **parameters))
    return built


def _weight(description: dict[str, Any]) -> float | optax.Schedule:
    last, steps = float(description["weight"]), description["transition_steps"]
    if steps == 0:
        return last
    return optax.linear_schedule(float(description["initial_weight"]), last, steps)

"""Evaluation: protocols by name, exact over every example, the same noise for every model."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from corm_jax.losses.types import Batch
from corm_jax.protocols.ablations import ablations_protocol
from corm_jax.protocols.clean import clean_protocol, spurious_gap_protocol
from corm_jax.protocols.noise import (
    BOX_SIGMAS,
    CURVE_SIGMAS,
    CURVE_TRIALS,
    NORMALIZED_SIGMA,
    annotated_protocol,
    box_protocol,
    complement_protocol,
    controls_protocol,
    normalized_protocol,
    rfs_protocol,
    sigma_curve_protocol,
)
from corm_jax.protocols.saliency import THRESHOLD, saliency_protocol
from corm_jax.protocols.single_feature import single_feature_protocol
from corm_jax.protocols.types import EvalStep, Measured, Protocol
from corm_jax.protocols.views import BLUR
from corm_jax.sharding import put_batch, replicated

PROTOCOLS: dict[str, Callable[..., Protocol]] = {  # (model, config, scan=...) -> protocol
    "clean": clean_protocol,
    "complement": complement_protocol,
    "ablations": ablations_protocol,
    "annotated": annotated_protocol,
    "normalized": normalized_protocol,
    "box": box_protocol,
    "rfs": rfs_protocol,
    "sigma_curve": sigma_curve_protocol,
    "controls": controls_protocol,
    "saliency": saliency_protocol,
    "spurious_gap": spurious_gap_protocol,
    "single_feature": single_feature_protocol,
}

# What a protocol's numbers depend on beside `config.eval`.
PARAMETERS: dict[str, dict[str, Any]] = {
    "ablations": {"blur": BLUR},
    "annotated": {"trials": 1},
    "normalized": {"sigma_after_normalizer": NORMALIZED_SIGMA},
    "box": {"sigmas": list(BOX_SIGMAS)},
    "sigma_curve": {"sigmas": list(CURVE_SIGMAS), "most_trials": CURVE_TRIALS},
    "saliency": {"threshold": THRESHOLD},
    "single_feature": {"trials": 1},
}


def make_eval_step(protocol: Protocol, mesh: Mesh) -> EvalStep:
    """Compiles a protocol; what it returns is replicated on all devices."""
    return jax.jit(with_identity(protocol), out_shardings=replicated(mesh))


def with_identity(protocol: Protocol) -> EvalStep:
    """Returns a protocol whose outcomes come with the images that they are of."""

    def step(variables: Any, batch: Batch, **options: Any) -> Measured:
        outcomes = protocol(variables, batch, **options)
        return Measured(batch["id"], batch["label"], batch["weight"], outcomes)

    return step


def measure(
    step: EvalStep, variables: Any, batches: Iterable[dict[str, Any]], mesh: Mesh
) -> Measured:
    """Runs a protocol over all batches.

    Args:
      step: a protocol compiled by `make_eval_step`.
      variables: the model's.
      batches: loaded batches, as the protocol takes them; padding has weight 0.
      mesh: where to evaluate.

    Returns:
      numpy arrays of all images whose weight is not 0, in the order of the batches; of all hosts.
    """
    parts: list[Measured] = []
    for batch in batches:
        # Fetched one batch later: the device has work meanwhile, and never many batches waiting.
        parts[-1:] = jax.device_get(parts[-1:])
        parts.append(step(variables, put_batch(batch, mesh)))
    if not parts:
        raise ValueError("no batches to evaluate on")
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(parts))
    counts = whole.weight > 0
    return jax.tree.map(lambda leaf: leaf[counts], whole)

"""The protocols of images as they are."""

from typing import Any

import jax
from ml_collections import ConfigDict

from corm_jax.losses.types import Batch
from corm_jax.protocols.types import Outcomes, Protocol, Scan, correct_by, outcome
from corm_jax.steps import expand_batch


def clean_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Clean accuracy alone.

    It takes a third argument, classes bool [C]: those that a prediction is taken among. As
    published for ImageNet-A and ImageNet-R (Hendrycks et al. 2021, arXiv:1907.07174 and
    arXiv:2006.16241), which have 200 of ImageNet's 1000 classes.
    """
    del config, scan

    def measure(variables: Any, batch: Batch, classes: jax.Array) -> Outcomes:
        batch = jax.jit(expand_batch)(batch)
        correct = correct_by(model, variables, batch["label"], classes)
        return {"clean": outcome(correct(batch["image"]), batch["weight"])}

    return measure


def spurious_gap_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Clean accuracy on the images of each class that show its spurious features most, and least.

    It takes batches with `end` float32 [B]: 1 for the former, -1 for the latter, 0 for the rest
    (`corm_jax.data.ranked.rank`).

    Source: Moayeri et al., Spuriosity Rankings, NeurIPS 2023 (arXiv:2212.02648), which pools the
    images of all classes where this takes means over classes.
    """
    del config, scan

    def measure(variables: Any, batch: Batch) -> Outcomes:
        end = batch["end"]
        batch = jax.jit(expand_batch)(batch)
        clean = correct_by(model, variables, batch["label"])(batch["image"])
        return {
            "most_spurious": outcome(clean, batch["weight"] * (end > 0).astype(end.dtype)),
            "least_spurious": outcome(clean, batch["weight"] * (end < 0).astype(end.dtype)),
        }

    return measure

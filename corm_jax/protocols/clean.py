"""The protocol of clean accuracy alone."""

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

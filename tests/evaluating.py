"""A linear model, and loaded batches to evaluate it on."""

from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from corm_jax.protocols import measure
from corm_jax.protocols.summary import summarize
from corm_jax.protocols.types import EvalStep
from corm_jax.sharding import create_mesh


class Linear(nn.Module):
    """Logits linear in the pixels."""

    num_classes: int

    @nn.compact
    def __call__(self, images, *, train):
        assert not train
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1)), {}


def batches(examples: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Cuts examples into batches; repeats the last with weight 0 to fill the last batch."""
    count = len(examples["label"])
    for start in range(0, count, size):
        places = np.arange(start, start + size)
        chosen = np.minimum(places, count - 1)
        batch = jax.tree.map(lambda value, chosen=chosen: value[chosen], examples)
        yield {**batch, "weight": (places < count).astype(np.float32)}


def evaluate(
    step: EvalStep, variables: Any, batches: Iterable[Any], mesh: Mesh
) -> dict[str, float]:
    """Returns the metrics of a protocol over all batches."""
    return summarize(measure(step, variables, batches, mesh))


def mesh_of(devices: int) -> Mesh:
    """Returns a mesh over the first devices."""
    return create_mesh(-1, 1, jax.devices()[:devices])

"""That a model can be trained."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from corm_jax.torch_weights import abstract_variables


def assert_every_parameter_learns(model: nn.Module, image_size: int) -> None:
    """Asserts that in training every one of a model's random parameters has a gradient."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, image_size, image_size, 3)).astype(np.float32)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        inputs = math.prod(leaf.shape[:-1])
        mean, deviation = (1, 0.3) if leaf.ndim == 1 else (0, inputs**-0.5)
        return rng.normal(mean, deviation, leaf.shape).astype(np.float32)

    variables = jax.tree.map(draw, abstract_variables(model, image_size))

    def loss(params: Any) -> jax.Array:
        (logits, _), _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        # A bias of keys adds the same to all scores of a query, which a softmax takes out again.
        if [key.key for key in path[-2:]] != ["k_proj", "bias"]:
            assert np.abs(leaf).max() > 0, path

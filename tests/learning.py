"""Random variables of models, and that a model can be trained."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from corm_jax.torch_weights import abstract_variables


def draw_variables(model: nn.Module, image_size: int) -> Any:
    """Returns random variables of which all matter, and variances are positive."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim == 1:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        deviation = math.prod(leaf.shape[:-1]) ** -0.5
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    return jax.tree.map(draw, abstract_variables(model, image_size))


def assert_every_parameter_learns(model: nn.Module, image_size: int) -> None:
    """Asserts that in training every one of a model's random parameters has a gradient."""
    images = np.random.default_rng(0).uniform(size=(2, image_size, image_size, 3))
    images = images.astype(np.float32)
    variables = draw_variables(model, image_size)

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

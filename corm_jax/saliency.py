"""Class activation maps: where in an image a model finds a class.

Those here are differentiable, so that losses and measurements share them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from corm_jax.errors import lookup
from corm_jax.losses.shared import linearize_maps
from corm_jax.losses.types import Forward, Outputs


def grad_cam(maps: jax.Array, gradients: jax.Array) -> jax.Array:
    """Grad-CAM: relu(sum_k alpha_k A_k), alpha_k the mean over places of dy/dA_k.

    Args:
      maps: float [B, h, w, K], A.
      gradients: float [B, h, w, K], dy/dA of a score y [B].

    Returns:
      float [B, h, w].

    Source: Selvaraju et al. 2017, arXiv:1610.02391.
    """
    return jax.nn.relu((maps * gradients.mean(axis=(1, 2), keepdims=True)).sum(axis=-1))


def hires_cam(maps: jax.Array, gradients: jax.Array) -> jax.Array:
    """HiResCAM: relu(sum_k dy/dA_k A_k); see `grad_cam`.

    Before the relu the places' sum is the score, without a bias, of a head that is linear in the
    maps.

    Source: Draelos and Carin 2020, arXiv:2011.08891.
    """
    return jax.nn.relu((maps * gradients).sum(axis=-1))


CAM_METHODS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "grad_cam": grad_cam,
    "hires_cam": hires_cam,
}


def class_activation_maps(
    forward: Forward, images: jax.Array, classes: jax.Array, *, method: str
) -> tuple[jax.Array, Outputs]:
    """Computes the class activation map of each image for a class.

    It costs a backward pass of the layers above the maps, beside the forward pass. Gradients of
    what is computed from it flow through the maps and through dy/dA.

    Args:
      forward: images -> (logits, intermediates) with `maps`; takes the keyword `maps_offset`, as
        our models do. Which layer's maps these are stands with each model: for a ResNet the last
        stage's, for a vision transformer the patch tokens that pytorch-grad-cam takes.
      images: float [B, H, W, 3] in [0, 1].
      classes: int [B], whose logit the score is.
      method: "grad_cam" or "hires_cam".

    Returns:
      (float32 [B, h, w], not negative; (logits, intermediates)).

    Raises:
      UserError: if the method is unknown, or the model has no maps.
    """
    compute = lookup(CAM_METHODS, method, "method")
    (logits, intermediates), push = linearize_maps(forward, images)
    maps = intermediates["maps"]
    scores = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    (gradients,) = jax.linear_transpose(push, maps)(scores)
    cams = compute(maps.astype(jnp.float32), gradients.astype(jnp.float32))
    return cams, (logits, intermediates)

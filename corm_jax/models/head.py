"""Linear heads, and the maps of classes where a head sees nothing but a mean over maps."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

lecun_normal = nn.initializers.lecun_normal()


def linear_head(
    classes: int, *, bias: bool, name: str, kernel_init: Callable[..., jax.Array] = lecun_normal
) -> nn.Dense:
    """Returns a linear layer to float32 logits."""
    return nn.Dense(classes, use_bias=bias, kernel_init=kernel_init, dtype=jnp.float32, name=name)


def classify_maps(head: nn.Dense, maps: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Classifies the mean over maps [B, h, w, K].

    Returns:
      (logits float32 [B, C], intermediates): `maps` as they came, `pre_logits` [B, K], and of a
      head without bias `class_maps` float32 [B, h, w, C], what each place adds to each logit, so
      that their sum over places is the logits (class activation maps: Zhou et al. 2016,
      arXiv:1512.04150). A compiled program that does not use them does not compute them.
    """
    pre_logits = maps.mean(axis=(1, 2))
    intermediates = {"maps": maps, "pre_logits": pre_logits}
    logits = head(pre_logits.astype(jnp.float32))
    if not head.use_bias:
        places = maps.shape[1] * maps.shape[2]
        intermediates["class_maps"] = head(maps.astype(jnp.float32)) / places
    return logits, intermediates

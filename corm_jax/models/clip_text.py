"""CLIP's text tower (Radford et al. 2021, arXiv:2103.00020), laid out as open_clip's."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from corm_jax.models.clip_image import LAYER_NORM_EPSILON, MLP_RATIO
from corm_jax.models.vit import Block

# Tokens of a text, padded by zeros behind its end token.
CONTEXT_LENGTH = 77
# The end token has the largest number.
VOCABULARY = 49408


class TextTower(nn.Module):
    """A causal transformer over tokens, and a projection of the text's end token.

    Attributes:
      features: of a text.
      width: token dimension.
      depth: number of blocks.
      heads: attention heads a block; divides `width`.
      activation: of the blocks' MLPs.
      dtype: computation dtype; parameters are float32.
      vocabulary: number of tokens.
      context_length: of each text in tokens, padding included.
    """

    features: int
    width: int
    depth: int
    heads: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: jnp.dtype
    vocabulary: int = VOCABULARY
    context_length: int = CONTEXT_LENGTH

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Embeds texts: int [T, context_length] in [0, vocabulary) to [T, features]."""
        embed = nn.Embed(
            self.vocabulary,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="token_embedding",
        )
        positions = self.param(
            "positional_embedding", nn.initializers.normal(0.01), (self.context_length, self.width)
        )
        x = embed(tokens) + positions.astype(self.dtype)
        causal = jnp.tri(self.context_length, dtype=bool)
        for index in range(self.depth):
            x, _ = Block(
                self.heads,
                MLP_RATIO,
                self.dtype,
                LAYER_NORM_EPSILON,
                self.activation,
                name=f"block{index:02d}",
            )(x, mask=causal)
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="ln_final")(x)
        end = jnp.argmax(tokens, axis=1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        projection = self.param(
            "text_projection",
            nn.initializers.normal(self.width**-0.5),
            (self.width, self.features),
        )
        return x @ projection.astype(self.dtype)

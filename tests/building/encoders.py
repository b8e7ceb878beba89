"""Encoders of random weights."""

import jax
import jax.numpy as jnp

from corm_jax.masks.building.encoder import Encoder
from corm_jax.models import create_model


def random_encoder(name: str, image_size: int, class_names: tuple[str, ...]) -> Encoder:
    model = create_model(name, num_classes=len(class_names), dtype="float32")
    images = jnp.zeros((1, image_size, image_size, 3), jnp.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    keys = iter(jax.random.split(jax.random.key(1), 200))
    # All of them random: at initialisation residual branches and the heads of ViTs are zero.
    variables = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), variables
    )
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    return Encoder.create(
        model,
        variables,
        image_size=image_size,
        center_crop_share=0.875,
        class_names=class_names,
    )

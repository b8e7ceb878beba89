"""A linear model and its batches, on which losses can be derived by hand."""

import jax
import jax.numpy as jnp
import numpy as np

BATCH, SIZE, CLASSES = 4, 4, 3
PIXELS = SIZE * SIZE * 3
KEY = jax.random.key(3)
rng = np.random.default_rng(0)
WEIGHTS = jnp.asarray(rng.normal(size=(PIXELS, CLASSES)), jnp.float32)
BIAS = jnp.asarray(rng.normal(size=CLASSES), jnp.float32)


def linear(weights=WEIGHTS, dtype=jnp.float32):
    """Returns images -> (logits, intermediates), linear in the pixels, computed in a dtype.

    Its maps are the images; its bias is spread evenly over the class maps.
    """

    def forward(images, maps_offset=0.0):
        maps = images + maps_offset
        pixels = maps.reshape(len(images), -1).astype(dtype)
        logits = (pixels @ weights.astype(dtype)).astype(jnp.float32) + BIAS
        kernels = weights.reshape(SIZE, SIZE, 3, CLASSES)
        class_maps = jnp.einsum("bhwk,hwkc->bhwc", maps, kernels) + BIAS / SIZE**2
        return logits, {"maps": maps, "class_maps": class_maps}

    return forward


def make_batch(size=BATCH, seed=1):
    """Returns a batch of which image 0 has no mask and target rows are soft."""
    rng = np.random.default_rng(seed)
    non_core = rng.uniform(size=(size, SIZE, SIZE, 1)) * rng.integers(0, 2, (size, SIZE, SIZE, 1))
    known = np.ones_like(non_core)
    non_core[0], known[0] = 0, 0
    target = rng.uniform(0.1, 1, (size, CLASSES))
    batch = {
        "image": rng.uniform(size=(size, SIZE, SIZE, 3)),
        "target": target / target.sum(axis=1, keepdims=True),
        "non_core": non_core,
        "core_mask": known * (1 - non_core),
        "mask_valid": known,
        "has_mask": np.arange(size) > 0,
        "weight": np.ones(size),
    }
    return {key: jnp.asarray(value, jnp.float32) for key, value in batch.items()}


def softmax(images, weights=WEIGHTS):
    """Returns float64 probabilities [B, C] of images."""
    logits = np.asarray(images, np.float64).reshape(len(images), -1) @ np.asarray(weights, float)
    powers = np.exp(logits + np.asarray(BIAS, float))
    return powers / powers.sum(axis=1, keepdims=True)


def by_hand_cross_entropy(images, target):
    """Returns float64 [B]."""
    return -(np.asarray(target) * np.log(softmax(images))).sum(axis=1)


# Gaussian noise outside the core of every image, as a term's parameters.
VIEW = {
    "corruption": "gaussian_noise",
    "sigma": 0.25,
    "sigma_high": 0.0,
    "patch": 2,
    "region": "non_core",
    "probability": 1.0,
    "probability_per": "example",
}

"""The protocol that puts noise on one annotated feature at a time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from corm_jax.corruptions import gaussian_noise
from corm_jax.losses.types import Batch
from corm_jax.masks.checks import KINDS
from corm_jax.protocols.types import Outcomes, Protocol, Scan, correct_by, count, outcome
from corm_jax.protocols.views import trial_keys
from corm_jax.steps import expand_batch


def single_feature_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Accuracy with noise on one core, or one spurious feature of the image's class alone.

    The region is the feature's neural activation map on the image, not dilated; one draw of noise
    of `config.eval.sigma`, clipped, by seed, image and channel of the feature. A feature counts on
    the images that its build has a map of which is not empty (in Salient ImageNet those that
    activate it most). `single_core` of an image is the mean over its core features, and
    `single_core_clean` the accuracy without noise on the same images; likewise `single_spurious`.
    `single_feature_K` are the outcomes of the K-th annotated feature of each image's class, and
    `single_clean` those without noise of every image.

    It takes batches of `corm_jax.data.features.FeatureLoader`.

    Source: Singla and Feizi 2022 (arXiv:2110.04301), whose table of drops is by class and feature;
    the mean over an image's features, then images, then classes is a project choice.
    """

    def with_map(batch: Batch, slot: jax.Array) -> Batch:
        """Returns an expanded batch, its core mask the map of one feature of each image."""
        return expand_batch({**batch, "core_grid": batch["feature_grid"][:, slot]})

    @jax.jit
    def plain(batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the images as they are, and whether each shows each feature, bool [K, B]."""

        def shows(slot: jax.Array) -> jax.Array:
            return (with_map(batch, slot)["core_mask"] > 0).any(axis=(1, 2, 3))

        slots = jnp.arange(batch["feature"].shape[1])
        image = with_map(batch, jnp.asarray(0))["image"]
        return image, jax.lax.map(shows, slots)  # one after another: maps of images are large

    @jax.jit
    def under_noise(batch: Batch, slot: jax.Array) -> dict[str, jax.Array]:
        expanded = with_map(batch, slot)
        keys = trial_keys(config.eval.seed, batch["id"], jnp.asarray(0))
        keys = jax.vmap(jax.random.fold_in)(keys, batch["feature"][:, slot])
        noise = jax.vmap(partial(gaussian_noise, sigma=config.eval.sigma))
        return {"noisy": noise(expanded["image"], expanded["core_mask"], keys)}

    def measure(variables: Any, batch: Batch) -> Outcomes:
        image, shown = plain(batch)
        correct = correct_by(model, variables, batch["label"])
        clean, weight = correct(image), batch["weight"]
        hits = count(scan, correct, partial(under_noise, batch), len(shown))["noisy"]
        found, kinds = {"single_clean": outcome(clean, weight)}, batch["feature_kind"].T
        for number, kind in enumerate(KINDS):
            counted = (shown & (kinds == number)).astype(jnp.float32)
            features = counted.sum(axis=0)
            mean = (hits * counted).sum(axis=0) / jnp.maximum(features, 1.0)
            with_kind = weight * (features > 0).astype(jnp.float32)
            found[f"single_{kind}"] = outcome(mean, with_kind)
            found[f"single_{kind}_clean"] = outcome(clean, with_kind)
        for slot, (hit, shows) in enumerate(zip(hits, shown, strict=True)):
            counted = weight * shows.astype(jnp.float32)
            found[f"single_feature_{slot}"] = outcome(hit, counted)
        return found

    return measure

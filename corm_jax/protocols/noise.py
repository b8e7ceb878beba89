"""Protocols that put Gaussian noise in a region: the definitions that the literature has.

All draw it by seed, image and trial alone (`corm_jax.protocols.views.noisy`): every model sees the
very same noise, and so do the regions that one protocol compares.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from corm_jax.corruptions import gaussian_noise_l2
from corm_jax.losses.controls import move_at_random
from corm_jax.losses.types import Batch
from corm_jax.metrics import Outcome
from corm_jax.protocols.types import Outcomes, Protocol, Scan, correct_by, count, outcome
from corm_jax.protocols.views import box, core_region, noisy, trial_keys
from corm_jax.steps import expand_batch

NORMALIZED_SIGMA = 2.0  # in units of the model's input normaliser
BOX_SIGMAS = (0.25, 0.5, 0.75)
CURVE_SIGMAS = (0.0, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0)
CURVE_TRIALS = 3  # at most; a curve takes many passes
RANDOM_STREAM = 2**30  # of the random masks, apart from the trials' noise


class Noise(NamedTuple):
    """Where a protocol puts noise, and on which images that counts.

    Attributes:
      region: float32 [B, H, W, 1], scales the noise.
      weight: float32 [B].
    """

    region: jax.Array
    weight: jax.Array


Regions = Callable[[Batch], dict[str, Noise]]  # expanded batch -> noise by the outcome's name


def complement_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Clean, core and spurious accuracy by the `complement` definition.

    The core region is the core mask, dilated (see `corm_jax.protocols.views.dilations`) and divided
    by its maximum; core accuracy has noise outside it, spurious accuracy on it. Images without core
    mask are left out of both. What a mask says nothing about is left as it is (project choice).

    Source: Singla, Moayeri and Feizi 2022 (arXiv:2203.15566).
    """
    under_noise = _protocol(model, config, scan, _complement, [config.eval.sigma])

    def measure(variables: Any, batch: Batch) -> Outcomes:
        found = under_noise(variables, batch)
        batch = jax.jit(expand_batch)(batch)
        logits, _ = model.apply(variables, batch["image"], train=False)
        clean = (logits.argmax(axis=-1) == batch["label"]).astype(jnp.float32)
        confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(axis=-1)
        with_core = (found["core"].number > 0).astype(jnp.float32) * batch["weight"]
        return {
            "clean": outcome(clean, batch["weight"]),
            "confidence": outcome(confidence, batch["weight"]),
            "with_core": outcome(clean, with_core),
            **found,
        }

    return measure


def annotated_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Core and spurious accuracy as in Salient ImageNet's notebooks.

    Core accuracy has noise on the union of the image's spurious features, spurious accuracy on the
    union of its core features; one draw, no dilation. Each is measured on the images that have
    such a mask. It takes batches whose `spurious` is a loaded batch of the spurious masks
    (`corm_jax.data.pairs.with_spurious`).

    Source: Singla and Feizi 2022 (arXiv:2110.04301), whose notebooks clip to [0, 1].
    """
    return _protocol(model, config, scan, partial(_annotated, "annotated"), [config.eval.sigma], 1)


def normalized_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Core and spurious accuracy as MLX defines them.

    The regions of `annotated`; noise of standard deviation `NORMALIZED_SIGMA` after the model's
    own input normaliser, not clipped. Every model thus sees noise of another strength in pixels.

    Source: Heo et al. 2023 (MLX).
    """
    sigma = NORMALIZED_SIGMA * jnp.asarray(model.statistics.std, jnp.float32)
    regions = partial(_annotated, "normalized")
    return _protocol(model, config, scan, regions, [sigma], clip=False)


def box_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Core and spurious accuracy as Reveal2Revise defines them.

    The core region is the bounding box of the dilated mask (where it is at least half of its
    maximum, a project choice for soft masks); noise of standard deviations `BOX_SIGMAS`, not
    clipped.

    Source: Pahde et al. 2023 (Reveal to Revise, arXiv:2303.12641).
    """

    def regions(batch: Batch) -> dict[str, Noise]:
        core, present = core_region(batch["core_mask"])
        return _pair("box_core", "box_spurious", batch, box(core), present)

    return _protocol(model, config, scan, regions, BOX_SIGMAS, clip=False)


def rfs_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Accuracies that relative foreground sensitivity is made of, by two norms of the noise.

    The foreground is the core mask as it is. `background_noise` and `foreground_noise` have noise
    of standard deviation sigma there; with `_l2` it is scaled to one L2 norm over the image,
    whatever the size of the region: that of sigma over half of the pixels (project choice).

    Source: RIVAL10 (Moayeri et al. 2022, arXiv:2201.10766), Hard ImageNet (Moayeri et al. 2022).
    """

    def regions(batch: Batch) -> dict[str, Noise]:
        mask = batch["core_mask"]
        present = (mask > 0).any(axis=(1, 2, 3)).astype(jnp.float32)
        return _pair("background_noise", "foreground_noise", batch, mask, present)

    def norm(batch: Batch, region: jax.Array, trial: jax.Array, sigma: jax.Array) -> jax.Array:
        radius = sigma * math.sqrt(batch["image"][0].size / 2)
        keys = trial_keys(config.eval.seed, batch["id"], trial)
        return jax.vmap(partial(gaussian_noise_l2, radius=radius))(batch["image"], region, keys)

    by_sigma = _protocol(model, config, scan, regions, [config.eval.sigma])
    by_norm = _protocol(model, config, scan, regions, [config.eval.sigma], draw=norm)

    def measure(variables: Any, batch: Batch) -> Outcomes:
        of_norm = by_norm(variables, batch)
        return by_sigma(variables, batch) | {f"{name}_l2": o for name, o in of_norm.items()}

    return measure


def sigma_curve_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Core and spurious accuracy of `complement` over the strength of the noise, `CURVE_SIGMAS`.

    At most `CURVE_TRIALS` draws, the same ones at every strength.
    """
    trials = min(CURVE_TRIALS, config.eval.trials)
    return _protocol(model, config, scan, _complement, CURVE_SIGMAS, trials)


def controls_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """What core and spurious accuracy of `complement` are where the masks say nothing.

    `random_core` and `random_spurious` take the core region mirrored and moved at random, of the
    same area, another place each trial; `whole_core` and `whole_spurious` have the noise of core
    and of spurious accuracy spread over the whole image, of the same energy (sum of squares,
    before clipping).
    """

    def whole(batch: Batch) -> dict[str, Noise]:
        def spread(noise: Noise) -> Noise:
            valid = batch["mask_valid"]
            energy = jnp.square(noise.region).sum(axis=(1, 2, 3), keepdims=True)
            area = jnp.maximum(valid.sum(axis=(1, 2, 3), keepdims=True), 1.0)
            return Noise(valid * jnp.sqrt(energy / area), noise.weight)

        return {f"whole_{name}": spread(noise) for name, noise in _complement(batch).items()}

    def elsewhere(batch: Batch) -> dict[str, Noise]:
        return {f"random_{name}": noise for name, noise in _complement(batch).items()}

    def moved(batch: Batch, region: jax.Array, trial: jax.Array, sigma: jax.Array) -> jax.Array:
        # Each image's own draw: not a batch's, so that it is the same whatever the batch.
        keys = trial_keys(config.eval.seed, batch["id"], RANDOM_STREAM + trial)
        region = jax.vmap(move_at_random)(region, keys)
        return noisy(batch, region, seed=config.eval.seed, trial=trial, sigma=sigma)

    of_whole = _protocol(model, config, scan, whole, [config.eval.sigma])
    of_random = _protocol(model, config, scan, elsewhere, [config.eval.sigma], draw=moved)
    return lambda variables, batch: of_whole(variables, batch) | of_random(variables, batch)


def _complement(batch: Batch) -> dict[str, Noise]:
    core, present = core_region(batch["core_mask"])
    return _pair("core", "spurious", batch, core, present)


def _annotated(prefix: str, batch: Batch) -> dict[str, Noise]:
    def noise(batch: Batch) -> Noise:
        mask = batch["core_mask"]
        return Noise(mask, batch["weight"] * (mask > 0).any(axis=(1, 2, 3)).astype(jnp.float32))

    return {f"{prefix}_core": noise(batch["spurious"]), f"{prefix}_spurious": noise(batch)}


def _pair(
    outside: str, inside: str, batch: Batch, core: jax.Array, present: jax.Array
) -> dict[str, Noise]:
    """Returns noise outside and inside of a core region, where it is known, by their names."""
    valid, weight = batch["mask_valid"], batch["weight"] * present
    return {outside: Noise(valid * (1.0 - core), weight), inside: Noise(valid * core, weight)}


def _protocol(
    model: Any,
    config: ConfigDict,
    scan: Scan,
    regions: Regions,
    sigmas: Sequence[float | jax.Array],
    trials: int = 0,
    *,
    clip: bool = True,
    draw: Callable[..., jax.Array] | None = None,
) -> Protocol:
    """Makes the protocol that counts correct predictions under noise.

    Args:
      model: maps images to (logits, intermediates).
      config: with `eval`.
      scan: runs the loop over strengths and trials.
      regions: where to put the noise.
      sigmas: strengths; of several each has outcomes of its own, NAME_SIGMA.
      trials: draws for each strength, `config.eval.trials` by default.
      clip: whether to clip to [0, 1].
      draw: (expanded batch, region, trial=, sigma=) -> images, where it is not `noisy`.
    """
    trials = trials or config.eval.trials
    strengths = jnp.asarray(sigmas, jnp.float32)
    suffixes = [f"_{sigma:g}" for sigma in sigmas] if len(sigmas) > 1 else [""]
    draw = draw or partial(noisy, seed=config.eval.seed, clip=clip)

    @jax.jit
    def prepare(batch: Batch) -> tuple[Batch, dict[str, Noise]]:
        expanded = expand_batch(batch)
        if "spurious" in batch:
            expanded["spurious"] = expand_batch(batch["spurious"])
        return expanded, regions(expanded)

    # Compiled also where the protocol as a whole is not.
    @jax.jit
    def views(batch: Batch, noises: dict[str, Noise], index: jax.Array) -> dict[str, jax.Array]:
        strength, trial = strengths[index // trials], index % trials
        return {
            name: draw(batch, noise.region, trial=trial, sigma=strength)
            for name, noise in noises.items()
        }

    def measure(variables: Any, batch: Batch) -> Outcomes:
        batch, noises = prepare(batch)
        correct = correct_by(model, variables, batch["label"])
        shown = partial(views, batch, noises)
        hits = count(scan, correct, shown, len(sigmas) * trials)
        return {
            f"{name}{suffix}": Outcome(
                noise.weight * hits[name][place * trials : (place + 1) * trials].sum(axis=0),
                noise.weight * trials,
            )
            for name, noise in noises.items()
            for place, suffix in enumerate(suffixes)
        }

    return measure

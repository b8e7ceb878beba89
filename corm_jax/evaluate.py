"""Evaluation: protocols by name, exact over every example, the same noise for every model."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax.losses.types import Batch
from corm_jax.metrics import ClassAccuracy, relative_core_sensitivity
from corm_jax.protocol_views import ablated, core_region, noisy_pair
from corm_jax.sharding import put_batch, replicated
from corm_jax.steps import expand_batch

Counts = dict[str, ClassAccuracy]
EvalStep = Callable[..., Counts]  # (variables, loaded batch) -> counts
# As jax.lax.scan; a model that is not jax's, which no compiled loop can hold, takes a plain one.
Scan = Callable[[Callable[[Any, Any], tuple[Any, Any]], Any, jax.Array], tuple[Any, Any]]

ABLATIONS = ("swapped_background", "grey_background", "grey_object")

DEFINITIONS = {
    "clean": "accuracy on the images as they are, mean over classes",
    "clean_plain": "accuracy on the images as they are, mean over images",
    "core": "accuracy under noise outside the core region, mean over classes and trials",
    "spurious": "accuracy under noise on the core region, mean over classes and trials",
    "rcs": "(core - spurious) / (2 min(a, 1 - a)), a = (core + spurious) / 2",
    "swapped_background": "accuracy with all but the core region swapped for the background of an "
    "image of another class, the same for every model, mean over classes",
    "grey_background": "accuracy with all but the core region grey, mean over classes",
    "grey_object": "accuracy with the core region grey, mean over classes: lower is better, chance "
    "is 1 over the number of classes",
    "images": "images that `clean` is measured on",
    "images_with_core": "images with a core mask, which all but `clean` is measured on",
    "images_swapped": "images with a core mask and a partner of another class, which "
    "`swapped_background` is measured on",
}


def extra_definitions(name: str, classes: int) -> dict[str, str]:
    """Returns the definitions of the metrics of a set that clean accuracy alone is measured on.

    Args:
      name: "counterfactual" or a TFDS data set.
      classes: how many classes occur in it.
    """
    where = f"the test split of {name}"
    if name == "counterfactual":
        where = "images whose backgrounds are independent of the class"
    accuracy = f"accuracy on {where}, predictions among the {classes} classes that occur there"
    return {
        name: f"{accuracy}, mean over classes",
        f"{name}_plain": f"{accuracy}, mean over images",
    }


def clean_protocol(model: nn.Module, config: ConfigDict, scan: Scan = jax.lax.scan) -> EvalStep:
    """Counts clean accuracy alone.

    The step takes a third argument, classes bool [C]: those that a prediction is taken among. As
    published for ImageNet-A and ImageNet-R (Hendrycks et al. 2021, arXiv:1907.07174 and
    arXiv:2006.16241), which have 200 of ImageNet's 1000 classes.
    """
    del config, scan

    def step(variables: Any, batch: Batch, classes: jax.Array) -> Counts:
        batch = jax.jit(expand_batch)(batch)
        correct, count = _counting(model, variables, batch["label"], classes)
        return {"clean": count(correct=correct(batch["image"]), weight=batch["weight"])}

    return step


def complement_protocol(
    model: nn.Module, config: ConfigDict, scan: Scan = jax.lax.scan
) -> EvalStep:
    """Counts clean, core and spurious accuracy by the `complement` definition.

    The core region is the core mask, dilated (see `dilations`) and divided by its maximum; core
    accuracy has noise outside it, spurious accuracy on it. Images without core mask are left out
    of both. What a mask says nothing about is left as it is (project choice).
    """
    trials = config.eval.trials
    # Compiled also where the step as a whole is not.
    noisy = jax.jit(partial(noisy_pair, seed=config.eval.seed, sigma=config.eval.sigma))

    def step(variables: Any, batch: Batch) -> Counts:
        batch = jax.jit(expand_batch)(batch)
        region, present = jax.jit(core_region)(batch["core_mask"])
        everything = jnp.ones(model.num_classes, bool)
        correct, count = _counting(model, variables, batch["label"], everything)
        weight = batch["weight"] * present

        def one(totals: Counts, trial: jax.Array) -> tuple[Counts, None]:
            core, spurious = noisy(batch, region, trial=trial)
            counts = {
                "core": count(correct=correct(core), weight=weight),
                "spurious": count(correct=correct(spurious), weight=weight),
            }
            return {name: totals[name].merge(counts[name]) for name in totals}, None

        zeros = jnp.zeros(model.num_classes, jnp.float32)
        empty = {name: ClassAccuracy(zeros, zeros) for name in ("core", "spurious")}
        totals, _ = scan(one, empty, jnp.arange(trials))
        clean = correct(batch["image"])
        return {
            "clean": count(correct=clean, weight=batch["weight"]),
            "with_core": count(correct=clean, weight=weight),
            **totals,
        }

    return step


def ablations_protocol(model: nn.Module, config: ConfigDict, scan: Scan = jax.lax.scan) -> EvalStep:
    """Counts accuracy under corruptions that no objective with noise trains on.

    The object alone, on grey or before another class's background, and the background alone, the
    object grey. Object and background are told apart by the core region of the `complement`
    protocol, so that all columns of a table mean the same by them (project choice); the dilation
    hides most of an object's outline as well, which a plain mask would keep in grey. A background
    is lent by a partner (`corm_jax.data.order.partners`), its core region filled with its
    background's mean colour. Images without core mask are left out. What a mask says nothing about
    is left as it is.

    The step takes batches whose `partner` is a loaded batch too (`corm_jax.data.pairs.pair`).

    Source: the mixed-rand, only-FG and no-FG images of the Backgrounds Challenge (Xiao et al. 2020,
    arXiv:2006.09994), which have a tile of the background, black and black where these have its
    mean colour, grey and grey; their mixed-rand backgrounds may be of the same class.
    """
    del config

    def step(variables: Any, batch: Batch) -> Counts:
        batch, partner = jax.jit(expand_batch)(batch), jax.jit(expand_batch)(batch["partner"])
        region, present = jax.jit(core_region)(batch["core_mask"])
        views, swapped = jax.jit(ablated)(batch, partner, region)
        everything = jnp.ones(model.num_classes, bool)
        correct, count = _counting(model, variables, batch["label"], everything)
        # A loop compiles the model once.
        _, hits = scan(lambda _, view: (None, correct(view)), None, jnp.stack(list(views.values())))
        weight = batch["weight"] * present
        weights = {name: weight for name in views} | {"swapped_background": weight * swapped}
        return {
            name: count(correct=hit, weight=weights[name])
            for name, hit in zip(views, hits, strict=True)
        }

    return step


PROTOCOLS: dict[str, Callable[..., EvalStep]] = {  # (model, config, scan=...) -> step
    "clean": clean_protocol,
    "complement": complement_protocol,
    "ablations": ablations_protocol,
}


def _counting(
    model: nn.Module, variables: Any, label: jax.Array, classes: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], Callable[..., ClassAccuracy]]:
    """Returns (images -> whether each is classified right, (correct, weight) -> counts)."""

    def correct(images: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, images, train=False)
        return jnp.where(classes, logits, -jnp.inf).argmax(axis=-1) == label

    count = partial(ClassAccuracy.from_model_output, label=label, num_classes=model.num_classes)
    return correct, count


def make_eval_step(protocol: EvalStep, mesh: Mesh) -> EvalStep:
    """Compiles a protocol; its counts are replicated on all devices."""
    return jax.jit(protocol, out_shardings=replicated(mesh))


def evaluate(
    step: EvalStep, variables: Any, batches: Iterable[dict[str, Any]], mesh: Mesh
) -> dict[str, float]:
    """Evaluates over all batches.

    Args:
      step: a protocol compiled by `make_eval_step`.
      variables: the model's.
      batches: loaded batches, as the protocol takes them; padding has weight 0.
      mesh: where to evaluate.

    Returns:
      the metrics of `DEFINITIONS` that the protocol measures; accuracies in [0, 1].
    """
    totals: Counts | None = None
    for batch in batches:
        counts = step(variables, put_batch(batch, mesh))
        totals = counts if totals is None else {k: totals[k].merge(v) for k, v in counts.items()}
    if totals is None:
        raise ValueError("no batches to evaluate on")
    return summarize(totals)


def summarize(totals: Counts) -> dict[str, float]:
    """Turns counts into the metrics of `DEFINITIONS`."""
    results = {}
    if "clean" in totals:
        results |= {
            "clean": totals["clean"].compute(),
            "clean_plain": totals["clean"].compute_plain(),
            "images": totals["clean"].number(),
        }
    # What is measured on no image is left out: all but `clean` without masks, a swap where all
    # images are of one class.
    if "core" in totals:
        if totals["core"].number():
            core, spurious = totals["core"].compute(), totals["spurious"].compute()
            rcs = relative_core_sensitivity(core, spurious)
            results |= {"core": core, "spurious": spurious, "rcs": rcs}
        results["images_with_core"] = totals["with_core"].number()
    if "swapped_background" in totals:
        results |= {n: totals[n].compute() for n in ABLATIONS if totals[n].number()}
        results["images_swapped"] = totals["swapped_background"].number()
    return results

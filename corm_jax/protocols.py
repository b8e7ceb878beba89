"""Evaluation: protocols by name, exact over every example, the same noise for every model."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax.losses.types import Batch
from corm_jax.metrics import ClassAccuracy, Outcome, relative_core_sensitivity
from corm_jax.protocol_views import ablated, core_region, noisy_pair
from corm_jax.sharding import put_batch, replicated
from corm_jax.steps import expand_batch

Outcomes = dict[str, Outcome]


@flax.struct.dataclass
class Measured:
    """What a protocol found.

    Attributes:
      id: uint32 [N], the images' (`corm_jax.data.pipeline.identity`).
      label: int32 [N].
      weight: float32 [N], 0 for padding.
      outcomes: by the names of what was measured.
    """

    id: Any
    label: Any
    weight: Any
    outcomes: Outcomes


Protocol = Callable[..., Outcomes]  # (variables, loaded batch) -> outcomes
EvalStep = Callable[..., Measured]  # the same, with the images
# As jax.lax.scan; a model that is not jax's, which no compiled loop can hold, takes a plain one.
Scan = Callable[[Callable[[Any, Any], tuple[Any, Any]], Any, jax.Array], tuple[Any, Any]]

ABLATIONS = ("swapped_background", "grey_background", "grey_object")
# Metrics that are the accuracies, mean over classes, of outcomes of the same name.
ACCURACIES = ("clean", "core", "spurious", *ABLATIONS)

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


def clean_protocol(model: nn.Module, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Clean accuracy alone.

    It takes a third argument, classes bool [C]: those that a prediction is taken among. As
    published for ImageNet-A and ImageNet-R (Hendrycks et al. 2021, arXiv:1907.07174 and
    arXiv:2006.16241), which have 200 of ImageNet's 1000 classes.
    """
    del config, scan

    def measure(variables: Any, batch: Batch, classes: jax.Array) -> Outcomes:
        batch = jax.jit(expand_batch)(batch)
        correct = _correct(model, variables, batch["label"], classes)
        return {"clean": _outcome(correct(batch["image"]), batch["weight"])}

    return measure


def complement_protocol(
    model: nn.Module, config: ConfigDict, scan: Scan = jax.lax.scan
) -> Protocol:
    """Clean, core and spurious accuracy by the `complement` definition.

    The core region is the core mask, dilated (see `dilations`) and divided by its maximum; core
    accuracy has noise outside it, spurious accuracy on it. Images without core mask are left out
    of both. What a mask says nothing about is left as it is (project choice).
    """
    trials = config.eval.trials
    # Compiled also where the protocol as a whole is not.
    noisy = jax.jit(partial(noisy_pair, seed=config.eval.seed, sigma=config.eval.sigma))

    def measure(variables: Any, batch: Batch) -> Outcomes:
        batch = jax.jit(expand_batch)(batch)
        region, present = jax.jit(core_region)(batch["core_mask"])
        everything = jnp.ones(model.num_classes, bool)
        correct = _correct(model, variables, batch["label"], everything)

        def one(right: dict[str, jax.Array], trial: jax.Array) -> tuple[dict[str, jax.Array], None]:
            views = zip(right, noisy(batch, region, trial=trial), strict=True)
            return {name: right[name] + correct(view) for name, view in views}, None

        zeros = {name: jnp.zeros_like(batch["weight"]) for name in ("core", "spurious")}
        right, _ = scan(one, zeros, jnp.arange(trials))
        weight = batch["weight"] * present
        clean = correct(batch["image"])
        return {
            "clean": _outcome(clean, batch["weight"]),
            "with_core": _outcome(clean, weight),
            **{name: Outcome(weight * hits, weight * trials) for name, hits in right.items()},
        }

    return measure


def ablations_protocol(model: nn.Module, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Accuracy under corruptions that no objective with noise trains on.

    The object alone, on grey or before another class's background, and the background alone, the
    object grey. Object and background are told apart by the core region of the `complement`
    protocol, so that all columns of a table mean the same by them (project choice); the dilation
    hides most of an object's outline as well, which a plain mask would keep in grey. A background
    is lent by a partner (`corm_jax.data.order.partners`), its core region filled with its
    background's mean colour. Images without core mask are left out. What a mask says nothing about
    is left as it is.

    It takes batches whose `partner` is a loaded batch too (`corm_jax.data.pairs.pair`).

    Source: the mixed-rand, only-FG and no-FG images of the Backgrounds Challenge (Xiao et al. 2020,
    arXiv:2006.09994), which have a tile of the background, black and black where these have its
    mean colour, grey and grey; their mixed-rand backgrounds may be of the same class.
    """
    del config

    def measure(variables: Any, batch: Batch) -> Outcomes:
        batch, partner = jax.jit(expand_batch)(batch), jax.jit(expand_batch)(batch["partner"])
        region, present = jax.jit(core_region)(batch["core_mask"])
        views, swapped = jax.jit(ablated)(batch, partner, region)
        everything = jnp.ones(model.num_classes, bool)
        correct = _correct(model, variables, batch["label"], everything)
        # A loop compiles the model once.
        _, hits = scan(lambda _, view: (None, correct(view)), None, jnp.stack(list(views.values())))
        weight = batch["weight"] * present
        weights = {name: weight for name in views} | {"swapped_background": weight * swapped}
        return {name: _outcome(hit, weights[name]) for name, hit in zip(views, hits, strict=True)}

    return measure


PROTOCOLS: dict[str, Callable[..., Protocol]] = {  # (model, config, scan=...) -> protocol
    "clean": clean_protocol,
    "complement": complement_protocol,
    "ablations": ablations_protocol,
}


def _correct(
    model: nn.Module, variables: Any, label: jax.Array, classes: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """Returns images -> float32 [B], 1 where they are classified right."""

    def correct(images: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, images, train=False)
        right = jnp.where(classes, logits, -jnp.inf).argmax(axis=-1) == label
        return right.astype(jnp.float32)

    return correct


def _outcome(correct: jax.Array, weight: jax.Array) -> Outcome:
    return Outcome(correct * weight, weight)


def make_eval_step(protocol: Protocol, mesh: Mesh) -> EvalStep:
    """Compiles a protocol; what it returns is replicated on all devices."""
    return jax.jit(with_identity(protocol), out_shardings=replicated(mesh))


def with_identity(protocol: Protocol) -> EvalStep:
    """Returns a protocol whose outcomes come with the images that they are of."""

    def step(variables: Any, batch: Batch, **options: Any) -> Measured:
        outcomes = protocol(variables, batch, **options)
        return Measured(batch["id"], batch["label"], batch["weight"], outcomes)

    return step


def measure(
    step: EvalStep, variables: Any, batches: Iterable[dict[str, Any]], mesh: Mesh
) -> Measured:
    """Runs a protocol over all batches.

    Args:
      step: a protocol compiled by `make_eval_step`.
      variables: the model's.
      batches: loaded batches, as the protocol takes them; padding has weight 0.
      mesh: where to evaluate.

    Returns:
      numpy arrays of all images whose weight is not 0, in the order of the batches; of all hosts.
    """
    parts: list[Measured] = []
    for batch in batches:
        # Fetched one batch later: the device has work meanwhile, and never many batches waiting.
        parts[-1:] = jax.device_get(parts[-1:])
        parts.append(step(variables, put_batch(batch, mesh)))
    if not parts:
        raise ValueError("no batches to evaluate on")
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(parts))
    counts = whole.weight > 0
    return jax.tree.map(lambda leaf: leaf[counts], whole)


def summarize(measured: Measured) -> dict[str, float]:
    """Returns the metrics of `DEFINITIONS` that were measured; accuracies in [0, 1]."""
    totals = {
        name: ClassAccuracy.from_model_output(
            outcome=outcome,
            label=measured.label,
            num_classes=int(measured.label.max(initial=0)) + 1,
        )
        for name, outcome in measured.outcomes.items()
    }
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

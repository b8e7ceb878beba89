"""The protocol whose corruptions no objective with noise trains on."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from corm_jax.losses.types import Batch
from corm_jax.protocols.types import Outcomes, Protocol, Scan, correct_by, outcome
from corm_jax.protocols.views import ablated, core_region
from corm_jax.steps import expand_batch

ABLATIONS = (
    "swapped_background",
    "grey_background",
    "blurred_background",
    "grey_object",
    "grey_box",
    "tiled_object",
)


def ablations_protocol(model: Any, config: ConfigDict, scan: Scan = jax.lax.scan) -> Protocol:
    """Accuracy under corruptions that no objective with noise trains on.

    The object alone, on grey, on its own background blurred, or before another class's background;
    and the background alone: the object grey, its bounding box grey, or the box tiled over with the
    largest strip beside it. Object and background are told apart by the core region of the
    `complement` protocol, so that all columns of a table mean the same by them (project choice);
    the dilation hides most of an object's outline as well, which a plain mask would keep in grey. A
    background is lent by a partner (`corm_jax.data.order.partners`), its core region filled with
    its background's mean colour. Images without core mask are left out. What a mask says nothing
    about is left as it is.

    It takes batches whose `partner` is a loaded batch too (`corm_jax.data.pairs.pair`).

    Sources: the mixed-rand, only-FG, no-FG and only-BG-T images of the Backgrounds Challenge (Xiao
    et al. 2020, arXiv:2006.09994), whose mixed-rand have a tile of the background, only-FG and
    no-FG black, where these have its mean colour and grey, and may be lent by the same class; the
    ablations of Hard ImageNet (Moayeri et al. 2022).
    """
    del config

    def measure(variables: Any, batch: Batch) -> Outcomes:
        batch, partner = jax.jit(expand_batch)(batch), jax.jit(expand_batch)(batch["partner"])
        region, present = jax.jit(core_region)(batch["core_mask"])
        views, shown = jax.jit(ablated)(batch, partner, region)
        correct = correct_by(model, variables, batch["label"])
        # A loop compiles the model once.
        _, hits = scan(lambda _, view: (None, correct(view)), None, jnp.stack(list(views.values())))
        weight = batch["weight"] * present
        return {
            name: outcome(hit, weight * shown[name]) for name, hit in zip(views, hits, strict=True)
        }

    return measure

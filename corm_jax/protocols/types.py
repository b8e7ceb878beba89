"""What evaluation protocols are made of, and how they count."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp

from corm_jax.metrics import Outcome

Outcomes = dict[str, Outcome]
Protocol = Callable[..., Outcomes]  # (variables, loaded batch) -> outcomes
# As jax.lax.scan; a model that is not jax's, which no compiled loop can hold, takes a plain one.
Scan = Callable[[Callable[[Any, Any], tuple[Any, Any]], Any, jax.Array], tuple[Any, Any]]
Correct = Callable[[jax.Array], jax.Array]  # images [B, H, W, 3] -> float32 [B], 1 where right


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


EvalStep = Callable[..., Measured]  # a protocol's arguments -> its outcomes, with the images


def correct_by(
    model: Any, variables: Any, label: jax.Array, classes: jax.Array | None = None
) -> Correct:
    """Returns images -> float32 [B], 1 where they are classified right.

    Args:
      model: maps images to (logits, intermediates) by `apply(variables, images, train=False)`.
      variables: the model's.
      label: int32 [B].
      classes: bool [C], those that a prediction is taken among; all by default.
    """

    def correct(images: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, images, train=False)
        if classes is not None:
            logits = jnp.where(classes, logits, -jnp.inf)
        return (logits.argmax(axis=-1) == label).astype(jnp.float32)

    return correct


def count(
    scan: Scan,
    correct: Correct,
    views: Callable[[jax.Array], Mapping[str, jax.Array]],
    number: int,
) -> dict[str, jax.Array]:
    """Classifies the views of a batch one after another; a loop compiles the model once a view.

    Args:
      scan: runs the loop.
      correct: from `correct_by`.
      views: int32 scalar below `number` -> images by name, the same names each time.
      number: how many times.

    Returns:
      name -> float32 [number, B], 1 where that view was classified right.
    """

    def one(_: None, index: jax.Array) -> tuple[None, dict[str, jax.Array]]:
        return None, {name: correct(view) for name, view in views(index).items()}

    return scan(one, None, jnp.arange(number))[1]


def outcome(value: jax.Array, weight: jax.Array) -> Outcome:
    """Returns the outcome of a value [B] in [0, 1] measured once on images of a weight [B]."""
    return Outcome(value * weight, weight)

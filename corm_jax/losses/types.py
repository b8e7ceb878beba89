"""Types of loss terms; `corm_jax.losses.terms` says what they mean."""

from collections.abc import Callable
from typing import Any

import jax

Outputs = tuple[jax.Array, dict[str, Any]]
Forward = Callable[..., Outputs]
Batch = dict[str, jax.Array]
Logs = dict[str, jax.Array]
Losses = tuple[jax.Array, Logs]
Term = Callable[[Forward, Batch, jax.Array], Losses]

"""Compares our models with PyTorch's of the same name, on random weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from corm_jax.models.normalizer import Statistics
from corm_jax.torch_weights import IGNORED, to_flax, to_torch

CLASSES = 11
# Our names -> torchvision's, where they differ; it has the same residual and dense networks.
TORCHVISION = {
    "vit_base_patch16_224": "vit_b_16",
    "vit_base_patch32_224": "vit_b_32",
    "vit_large_patch16_224": "vit_l_16",
    "vit_large_patch32_224": "vit_l_32",
}


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far our model is from another library's with the same weights.

    Attributes:
      logits: largest relative error of the logits, weights converted from PyTorch and to it.
      gradient: relative error of the gradient of a random combination of logits with respect to
        the images.
      exact: whether converting from PyTorch and back changed no bit and no key.
    """

    logits: float
    gradient: float
    exact: bool


def _timm(name: str, image_size: int) -> torch.nn.Module | None:
    import timm

    if not timm.is_model(name):
        return None
    # Only transformers are made for a size.
    sized = {"img_size": image_size} if "patch" in name else {}
    return timm.create_model(name, num_classes=CLASSES, **sized)


def _torchvision(name: str, image_size: int) -> torch.nn.Module | None:
    from torchvision import models

    known = TORCHVISION.get(name, name)
    if known not in models.list_models():
        return None
    sized = {"image_size": image_size} if "patch" in name else {}
    return models.get_model(known, weights=None, num_classes=CLASSES, **sized)


# Each returns the library's model of one of our names, None where it has none.
LIBRARIES: dict[str, Callable[[str, int], torch.nn.Module | None]] = {
    "timm": _timm,
    "torchvision": _torchvision,
}


def define_operators() -> None:
    """Lets torchvision be imported, and timm, where it was built for another PyTorch."""
    if not hasattr(torch.ops.torchvision, "nms"):
        torch.library.define("torchvision::nms", "(Tensor a, Tensor b, float c) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor a, Tensor b, float c) -> Tensor")


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives a module random weights and running averages, of a size that keeps activations small.

    Every running variance and scale is another, so that what is mixed up shows.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.endswith(IGNORED):
                value.fill_(7)
            elif key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim == 1:
                value.normal_(0, 0.1, generator=generator)
            else:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    return module.eval()


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns a module's state dict as numpy arrays."""
    return {key: value.numpy() for key, value in module.state_dict().items()}


def compare(ours: nn.Module, theirs: torch.nn.Module, *, library: str, image_size: int) -> Parity:
    """Compares two models, both of which are given random weights.

    Args:
      ours: float32, of as many classes as the other.
      theirs: the same in PyTorch.
      library: whose names it has; see `corm_jax.torch_weights`.
      image_size: height and width in pixels.

    Returns:
      errors relative to PyTorch's largest value.
    """
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(1, image_size, image_size, 3)).astype(np.float32)
    direction = rng.normal(size=(1, ours.num_classes)).astype(np.float32)

    @jax.jit
    def run(variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, _ = ours.apply(variables, images, train=False)
            return jnp.sum(logits * direction), logits

        gradient, logits = jax.grad(loss, has_aux=True)(images)
        return logits, gradient

    state = state_of(randomize(theirs))
    variables = to_flax(ours, state, image_size=image_size)
    exact = same_bits(to_torch(ours, variables, library=library), state)
    logits, gradient = run(variables, images)
    expected, expected_gradient = _run_torch(theirs, images, direction, ours.statistics)
    errors = [relative_error(logits, expected)]

    # The other way: weights that PyTorch has not seen.
    variables = jax.tree.map(lambda leaf: leaf[..., ::-1].copy(), variables)
    given = to_torch(ours, variables, library=library)
    theirs.load_state_dict(
        {key: torch.from_numpy(given.get(key, value)) for key, value in state.items()}
    )
    expected, _ = _run_torch(theirs, images, direction, ours.statistics)
    errors.append(relative_error(run(variables, images)[0], expected))
    return Parity(max(errors), relative_error(gradient, expected_gradient), exact)


def _run_torch(
    module: torch.nn.Module, images: np.ndarray, direction: np.ndarray, statistics: Statistics
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (logits, gradient of their product with `direction` by the images)."""
    inputs = torch.from_numpy(images.copy()).requires_grad_()
    normalized = (inputs - torch.tensor(statistics.mean)) / torch.tensor(statistics.std)
    logits = module(normalized.permute(0, 3, 1, 2))
    (gradient,) = torch.autograd.grad((logits * torch.from_numpy(direction)).sum(), inputs)
    return logits.detach().numpy(), gradient.numpy()


def relative_error(found: Any, expected: np.ndarray) -> float:
    """Returns the largest difference over the largest expected value, both absolute."""
    return float(abs(np.asarray(found) - expected).max() / abs(expected).max())


def same_bits(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> bool:
    """Returns whether two state dicts hold the same keys, dtypes and bits, counters aside."""
    expected = {key: value for key, value in expected.items() if not key.endswith(IGNORED)}
    return found.keys() == expected.keys() and all(
        found[key].dtype == value.dtype and found[key].tobytes() == value.tobytes()
        for key, value in expected.items()
    )

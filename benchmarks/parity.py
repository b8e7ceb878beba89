"""Compares our models with PyTorch's of the same name, on random weights."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch

from corm_jax.torch_weights import IGNORED, to_flax, to_torch

CLASSES = 11
IMAGES = 3
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
        the image; the median over images. A gradient jumps where a rectifier's input crosses zero,
        and where that is within rounding, two correct programs may be on different sides.
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


def _open_clip(name: str, image_size: int) -> torch.nn.Module | None:
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        return None
    config["vision_cfg"]["image_size"] = image_size
    return ClipClassifier(open_clip.CLIP(**config).visual)


class ClipClassifier(torch.nn.Module):
    """An image tower of open_clip with a linear head on its features of unit length."""

    def __init__(self, visual: torch.nn.Module, classes: int = CLASSES) -> None:
        """Takes a tower; the head is a new one."""
        super().__init__()
        self.visual = visual
        self.head = torch.nn.Linear(visual.output_dim, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps normalised images [B, 3, H, W] to logits [B, classes]."""
        return self.head(torch.nn.functional.normalize(self.visual(images), dim=-1))


# Each returns the library's model of one of our names, None where it has none.
LIBRARIES: dict[str, Callable[[str, int], torch.nn.Module | None]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
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
            elif key.startswith("visual.layer") and key.endswith("bn3.weight"):
                # CLIP's residual networks end in an attention. What its softmax sees must be small:
                # a saturated one's gradient is rounding alone, in PyTorch a multiple of the rest.
                value.uniform_(0.05, 0.15, generator=generator)
            elif key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim <= 1:
                value.normal_(0, 0.1, generator=generator)
            else:
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    return module.eval()


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns a module's state dict as numpy arrays."""
    return {key: value.numpy() for key, value in module.state_dict().items()}


def compare(
    ours: nn.Module,
    theirs: torch.nn.Module,
    *,
    library: str,
    image_size: int,
    gradient_size: int | None = None,
) -> Parity:
    """Compares two models, both of which are given random weights.

    Args:
      ours: float32, of as many classes as the other.
      theirs: the same in PyTorch.
      library: whose names it has; see `corm_jax.torch_weights`.
      image_size: height and width in pixels.
      gradient_size: the same of the images for the gradient, if another.

    Returns:
      errors relative to PyTorch's largest value.
    """
    rng = np.random.default_rng(0)
    images = _draw_images(rng, image_size)
    state = state_of(randomize(theirs))
    variables = to_flax(ours, state, image_size=image_size)
    exact = same_bits(to_torch(ours, variables, library=library), state)
    logits = jax.jit(lambda variables, x: ours.apply(variables, x, train=False)[0])
    errors = [relative_error(logits(variables, images), _logits(ours, theirs, images))]

    small = _draw_images(rng, gradient_size or image_size)
    direction = rng.normal(size=(IMAGES, ours.num_classes)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x, variables: jnp.sum(logits(variables, x) * direction)))
    jumps = map(
        relative_error,
        np.asarray(gradient(small, variables)),
        _gradient(ours, theirs, small, direction),
    )

    # The other way: weights that PyTorch has not seen.
    variables = jax.tree.map(lambda leaf: leaf[..., ::-1].copy(), variables)
    given = to_torch(ours, variables, library=library)
    theirs.load_state_dict(
        {key: torch.from_numpy(given.get(key, value)) for key, value in state.items()}
    )
    errors.append(relative_error(logits(variables, images), _logits(ours, theirs, images)))
    return Parity(max(errors), statistics.median(jumps), exact)


def _draw_images(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.uniform(size=(IMAGES, size, size, 3)).astype(np.float32)


def _run_torch(ours: nn.Module, theirs: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Runs PyTorch's model on images that are normalised as our model does it."""
    mean, std = (torch.tensor(values) for values in ours.statistics)
    return theirs(((images - mean) / std).permute(0, 3, 1, 2))


def _logits(ours: nn.Module, theirs: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return _run_torch(ours, theirs, torch.from_numpy(images)).numpy()


def _gradient(
    ours: nn.Module, theirs: torch.nn.Module, images: np.ndarray, direction: np.ndarray
) -> np.ndarray:
    """Returns the gradient of the logits' product with `direction` by the images."""
    inputs = torch.from_numpy(images).requires_grad_()
    product = (_run_torch(ours, theirs, inputs) * torch.from_numpy(direction)).sum()
    return torch.autograd.grad(product, inputs)[0].numpy()


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

"""What PyTorch users get of a model: a state dict, and how to use it, in timm's terms."""

import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from corm_jax.description import Description
from corm_jax.errors import UserError
from corm_jax.models import OWN, default_image_size
from corm_jax.models.normalizer import Statistics
from corm_jax.torch_weights import FAMILIES, abstract_variables

# What timm's vision transformers take for the poolings of ours.
TIMM_POOLS: dict[str, dict[str, Any]] = {
    "": {},
    "token": {"global_pool": "token", "class_token": True, "fc_norm": False},
    "avg": {"global_pool": "avg", "class_token": False, "fc_norm": False},
}
UNIT = Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def library_of(model: nn.Module) -> str:
    """Returns the library whose names a model's weights are exported under."""
    return next(iter(FAMILIES[type(model)]))


def timm_config(description: Description) -> dict[str, Any]:
    """Returns what a model is, as in timm's config.json.

    `architecture` is null for a model that timm does not have; `model_args` go to
    `timm.create_model`.
    """
    model, size = description.create("float32"), description.image_size
    in_timm = description.model not in OWN and library_of(model) == "timm"
    # Only transformers are made for a size: of their position embeddings, or their windows.
    sized = getattr(model, "patch_size", 1) > 1 and size != default_image_size(description.model)
    pooled = TIMM_POOLS[description.global_pool] if in_timm else {}
    return {
        "architecture": description.model if in_timm else None,
        "num_classes": description.num_classes,
        "label_names": description.class_names and list(description.class_names),
        "model_args": ({"img_size": size} if in_timm and sized else {}) | pooled,
        "pretrained_cfg": {
            "num_classes": description.num_classes,
            "input_size": [3, size, size],
            "interpolation": description.interpolation,
            "crop_pct": description.center_crop_share,
            "crop_mode": "center",
            "mean": list(description.statistics.mean),
            "std": list(description.statistics.std),
        },
    }


def add_head_bias(
    description: Description, variables: dict[str, Any]
) -> tuple[Description, dict[str, Any]]:
    """Gives a head without bias, which timm's models do not have, one of zeros: the same model.

    Args:
      description: of the model.
      variables: of the model.

    Returns:
      (description with a head bias, variables).
    """
    description = dataclasses.replace(description, head_bias=True)
    shapes = abstract_variables(description.create("float32"), description.image_size)
    zeros = {
        path: np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in flatten_dict(shapes).items()
        if path[-1] == "bias"
    }
    return description, unflatten_dict({**zeros, **flatten_dict(variables)})


def fold_normalizer(
    description: Description, variables: dict[str, Any]
) -> tuple[Description, dict[str, Any]]:
    """Moves the input normaliser into the first convolution.

    With W [h, w, 3, O] and b: W / std, and b - sum of W * mean / std over h, w and the colours.
    This is exact where the convolution pads nothing, as those of patches do. Zeros around a
    normalised image are the mean colour; around an image in [0, 1] they would be black.

    Args:
      description: of the model.
      variables: of the model.

    Returns:
      (description with mean 0 and std 1, variables), computed in float64.

    Raises:
      UserError: if the first convolution pads its input, or has no bias.
    """
    flat = flatten_dict(variables)
    kernels = (path for path, leaf in flat.items() if leaf.ndim == 4 and leaf.shape[2] == 3)
    path = next((path for path in kernels if (*path[:-1], "bias") in flat), None)
    # Those of our models that pad there have a norm after it, and no bias.
    if path is None:
        raise UserError(
            f"the first convolution of {description.model} pads its input, or has no bias, so that "
            "the normaliser cannot be folded into it: zeros around a normalised image are the mean "
            "colour, around another black; export it as it is, with mean and std in the .json file"
        )
    bias = (*path[:-1], "bias")
    mean, std = (np.asarray(values, np.float64)[:, None] for values in description.statistics)
    kernel = np.asarray(flat[path], np.float64) / std
    flat[path] = kernel.astype(np.float32)
    shift = (kernel * mean).sum(axis=(0, 1, 2))
    flat[bias] = (np.asarray(flat[bias], np.float64) - shift).astype(np.float32)
    return dataclasses.replace(description, statistics=UNIT), unflatten_dict(flat)

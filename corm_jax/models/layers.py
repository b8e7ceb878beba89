"""Which of a model's parameters are its head, and how deep the others lie."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn

from corm_jax.errors import UserError
from corm_jax.models import clip, convnext, densenet, resnet, swin, vit


class Layers(NamedTuple):
    """Paths of a family's modules in the tree of parameters.

    Attributes:
      heads: the classifiers, at the top of the tree; a variant need not have all of them.
      stem: regular expression of what comes before the blocks.
      block: regular expression of what belongs to a block; its groups are the block's numbers, in
        whose order blocks follow; what has no second number belongs to the first block of its own.
    """

    heads: tuple[str, ...]
    stem: str
    block: str


FAMILIES: dict[type[nn.Module], Layers] = {
    resnet.ResNet: Layers(("fc",), r"conv1|bn1", r"layer(\d+)_block(\d+)"),
    # By dense blocks, with the transition after them: their layers are too many to decay by.
    densenet.DenseNet: Layers(
        ("classifier",), r"conv0|norm0", r"(?:block|transition)(\d+)_(?:layer\d+|norm|conv)"
    ),
    vit.VisionTransformer: Layers(
        ("head", "head_dist"), r"(?:cls|dist)_token|pos_embed|patch_embed", r"block(\d+)"
    ),
    convnext.ConvNeXt: Layers(
        ("head",), r"stem_(?:conv|norm)", r"stages(\d+)_(?:block(\d+)|norm|conv)"
    ),
    swin.SwinTransformer: Layers(
        ("head",), r"patch_(?:embed|norm)", r"layers(\d+)_(?:block(\d+)|norm|reduction)"
    ),
    clip.CLIPClassifier: Layers(
        ("head",),
        r"image/(?:class_embedding|positional_embedding|ln_pre|conv\d|bn\d)",
        r"image/(?:block|layer)(\d+)(?:_block(\d+))?",
    ),
}


def heads(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of a model's classifiers, of which a variant need not have all.

    Raises:
      UserError: if the family is not in `FAMILIES`.
    """
    return _layers(model).heads


def depths(model: nn.Module, paths: Iterable[str]) -> dict[str, int]:
    """Returns the depth of each parameter: 0 in the stem, 1 in the first block, and so on.

    The head is deepest, with the last norm, if there is one before it, as in BEiT.

    Args:
      model: of a family in `FAMILIES`.
      paths: of all of the model's parameters, such as block00/fc1/kernel.

    Raises:
      UserError: if the family is not in `FAMILIES`.
    """
    _, stem, block = _layers(model)

    def place(path: str) -> tuple[int, ...]:
        if re.match(rf"(?:{stem})(?:/|$)", path):
            return (0,)
        numbers = re.match(rf"(?:{block})(?:/|$)", path)
        return (1, *(int(number or 0) for number in numbers.groups())) if numbers else (2,)

    places = {path: place(path) for path in paths}
    order = sorted(set(places.values()))
    return {path: order.index(found) for path, found in places.items()}


def _layers(model: nn.Module) -> Layers:
    family = type(model)
    if family not in FAMILIES:
        raise UserError(
            f"{family.__name__} does not say which of its parameters are its head; models that "
            f"do: {', '.join(known.__name__ for known in FAMILIES)}"
        )
    return FAMILIES[family]

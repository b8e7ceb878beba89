"""Which of a model's parameters are its head, and how deep the others lie."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import flax.linen as nn

from corm_jax.errors import UserError
from corm_jax.models import densenet, resnet, vit


class Layers(NamedTuple):
    """Names of a family's modules and parameters, at the top of the tree of parameters.

    Attributes:
      heads: the classifiers; a variant need not have all of them.
      stem: regular expression of what comes before the blocks.
      block: regular expression of what belongs to a block; its groups are the block's numbers, in
        whose order blocks follow.
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
}


def heads(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of a model's classifiers, of which a variant need not have all.

    Raises:
      UserError: if the family is not in `FAMILIES`.
    """
    return _layers(model).heads


def depths(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Returns the depth of each module: 0 for the stem, 1 for the first block, and so on.

    The head is deepest, with the last norm, if there is one before it, as in BEiT.

    Args:
      model: of a family in `FAMILIES`.
      names: all keys of the model's parameters.

    Raises:
      UserError: if the family is not in `FAMILIES`.
    """
    _, stem, block = _layers(model)

    def place(name: str) -> tuple[int, ...]:
        if re.fullmatch(stem, name):
            return (0,)
        numbers = re.fullmatch(block, name)
        return (1, *map(int, numbers.groups())) if numbers else (2,)

    places = {name: place(name) for name in names}
    order = sorted(set(places.values()))
    return {name: order.index(found) for name, found in places.items()}


def _layers(model: nn.Module) -> Layers:
    family = type(model)
    if family not in FAMILIES:
        raise UserError(
            f"{family.__name__} does not say which of its parameters are its head; models that "
            f"do: {', '.join(known.__name__ for known in FAMILIES)}"
        )
    return FAMILIES[family]

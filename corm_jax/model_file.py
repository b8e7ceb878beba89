"""Our own model files: .safetensors of Flax variables by path, with what the model is.

`params/conv1/kernel` and so on, in Flax's layout: `flax.traverse_util.unflatten_dict(arrays,
sep="/")` is what `model.apply` takes. The header's metadata holds `corm_jax`: the JSON of a
`Description`, and where the weights come from.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from corm_jax.description import Description
from corm_jax.errors import UserError
from corm_jax.files import replacing
from corm_jax.models import check_image_size, create_model
from corm_jax.models.clip import CLIPS
from corm_jax.models.normalizer import IMAGENET, Statistics
from corm_jax.models.zero_shot import tokenize, zero_shot_classifier
from corm_jax.state_dicts import read as read_state_dict
from corm_jax.state_dicts import read_safetensors, safetensors_metadata
from corm_jax.torch_weights import (
    abstract_variables,
    check_fit,
    naming,
    number_of_classes,
    to_flax,
)

METADATA = "corm_jax"
TEXT_TOWER = "token_embedding.weight"  # open_clip's name of what every CLIP with texts has


class Model(NamedTuple):
    """What a model file holds.

    Attributes:
      description: of the model.
      variables: of the model, float32 numpy arrays.
      origin: where the weights come from: {"file": name, "sha256": of its content}.
    """

    description: Description
    variables: dict[str, Any]
    origin: dict[str, str]


def write(path: Path, model: Model) -> None:
    """Writes a model file, whole or not at all."""
    metadata = {"description": model.description.to_json(), "origin": model.origin}
    content = safetensors.numpy.save(
        flatten_dict(model.variables, sep="/"), metadata={METADATA: json.dumps(metadata)}
    )
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read(path: Path) -> Model:
    """Reads a model file.

    Raises:
      UserError: if it is damaged, no file of ours, or its arrays do not fit the model that it
        describes; names the file.
    """
    held = _metadata(path) if path.suffix == ".safetensors" else None
    if held is None:
        raise UserError(
            f"{path} is no model file of corm_jax; make one of a PyTorch state dict: python -m "
            f"corm_jax.convert from-torch {path} --model=NAME --output=OUT.safetensors"
        )
    description = Description.from_json(held["description"], str(path))
    shapes = abstract_variables(description.create("float32"), description.image_size)
    expected = {key: leaf.shape for key, leaf in flatten_dict(shapes, sep="/").items()}
    try:
        arrays = read_safetensors(path)
        check_fit(expected, {key: array.shape for key, array in arrays.items()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Model(description, unflatten_dict(arrays, sep="/"), held["origin"])


def import_state_dict(
    path: Path,
    name: str,
    *,
    class_names: tuple[str, ...] | None,
    templates: Sequence[str],
    statistics: Statistics | None,
    image_size: int,
    center_crop_share: float,
    interpolation: str,
) -> Model:
    """Converts a PyTorch state dict; see `corm_jax.state_dicts` for the files.

    Of a CLIP with both towers it makes a classifier by the names of the classes
    (`corm_jax.models.zero_shot`).

    Args:
      path: of the file.
      name: of the model, a key of `corm_jax.models.MODELS`.
      class_names: None if unknown; the number of classes is the weights'. CLIP needs them.
      templates: of CLIP's prompts for a class; others have none.
      statistics: of the input normaliser; None for the file's own, else torchvision's where its
        names are torchvision's alone, else the model's.
      image_size: as in `Description`.
      center_crop_share: as in `Description`.
      interpolation: as in `Description`.

    Raises:
      UserError: if the file cannot be read safely, or does not fit the model or the class names;
        names the file.
    """

    def create(classes: int) -> nn.Module:
        return create_model(name, num_classes=classes, dtype="float32")

    create(1)  # an unknown name is found before a large file is read
    check_image_size(name, image_size)
    state, own = read_state_dict(path)
    try:
        foreign = False
        if name in CLIPS and TEXT_TOWER in state:
            model, variables = _zero_shot(name, state, class_names, templates, image_size)
        else:
            # Without a head nothing fits: what does not is named with all else.
            model = create(number_of_classes(create, state, image_size=image_size) or 1)
            variables = to_flax(model, state, image_size=image_size)
            foreign = naming(model, state, image_size=image_size) == "torchvision"
        classes = model.num_classes
        if class_names is not None and len(class_names) != classes:
            raise UserError(f"its weights are of {classes} classes, not {len(class_names)}")
    except UserError as error:
        raise UserError(f"{path} as {name}: {error}") from error
    description = Description(
        model=name,
        num_classes=classes,
        class_names=class_names,
        statistics=statistics or own or (IMAGENET if foreign else model.statistics),
        image_size=image_size,
        center_crop_share=center_crop_share,
        interpolation=interpolation,
    )
    with path.open("rb") as file:
        origin = {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return Model(description, variables, origin)


def _zero_shot(
    name: str,
    state: Mapping[str, np.ndarray],
    class_names: tuple[str, ...] | None,
    templates: Sequence[str],
    image_size: int,
) -> tuple[nn.Module, dict[str, Any]]:
    if class_names is None:
        raise UserError(
            "it has CLIP's texts and no classifier, which is made of the names of your classes: "
            f"python -m corm_jax.convert from-torch FILE --model={name} --classes=NAMES.txt "
            "--output=OUT.safetensors"
        )
    clip = CLIPS[name]()
    variables = to_flax(clip, state, image_size=image_size)
    return zero_shot_classifier(
        clip, variables, class_names, templates=templates, tokenize=tokenize
    )


def is_model_file(path: Path) -> bool:
    """Returns whether a file is one of ours.

    Raises:
      UserError: if its name says .safetensors, and it is none.
    """
    return path.suffix == ".safetensors" and _metadata(path) is not None


def _metadata(path: Path) -> dict[str, Any] | None:
    """Returns our part of a file's metadata, None if there is none."""
    try:
        metadata = safetensors_metadata(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if METADATA not in metadata:
        return None
    try:
        held = json.loads(metadata[METADATA])
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: its metadata is damaged ({error})") from error
    if not isinstance(held, dict) or held.keys() != {"description", "origin"}:
        raise UserError(f"{path}: its metadata is damaged; write it again")
    return held

"""Zero-shot classifiers (Radford et al. 2021, arXiv:2103.00020): CLIP's texts as a linear head.

The head's column of a class is the mean of the text features of its prompts, scaled to unit length
and times exp(logit_scale), as in WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903). What comes of it
is a classifier like any other, which can be evaluated as it is or fine-tuned.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from corm_jax.errors import UserError
from corm_jax.models.clip import CLIP, CLIPClassifier, unit_length

# The first is CLIP's own; the others are ours, for photographs of single objects.
TEMPLATES = (
    "a photo of a {}.",
    "a photo of a {} in its usual surroundings.",
    "a photo of a {} in an unusual place.",
    "a photo that shows a part of a {}.",
    "a small {} in a large picture.",
    "a blurred photo of a {}.",
)

Tokenize = Callable[[Sequence[str]], np.ndarray]


def tokenize(texts: Sequence[str]) -> np.ndarray:
    """Returns CLIP's tokens of texts, int32 [T, 77]; longer texts are cut off.

    The vocabulary is the one that open_clip brings along.

    Raises:
      UserError: if open_clip is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            f"CLIP's texts need open_clip's tokenizer: pip install 'corm_jax[clip]' ({error})"
        ) from error
    return open_clip.tokenize(list(texts)).numpy().astype(np.int32)


def prompts(class_name: str, templates: Sequence[str]) -> list[str]:
    """Returns the texts that stand for a class.

    Args:
      class_name: in plain words; underscores, as in names of folders, count as spaces.
      templates: with one `{}` each, where the name goes.

    Raises:
      UserError: if there is no template, or one has no such place or several.
    """
    if not templates:
        raise UserError("no prompt template is given; one is 'a photo of a {}.'")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"the prompt template {template!r} must have one {{}}, where the class's name goes"
            )
    return [template.replace("{}", class_name.replace("_", " ")) for template in templates]


def zero_shot_classifier(
    clip: CLIP,
    variables: Mapping[str, Any],
    class_names: Sequence[str],
    *,
    templates: Sequence[str],
    tokenize: Tokenize,
) -> tuple[CLIPClassifier, dict[str, Any]]:
    """Makes a classifier of CLIP's image tower, with a head of its text features.

    Args:
      clip: both towers.
      variables: of `clip`.
      class_names: one for each logit, in their order.
      templates: as of `prompts`, such as `TEMPLATES`.
      tokenize: texts -> int tokens [T, clip's context length], such as `tokenize` here.

    Returns:
      (classifier, its variables): logits are exp(logit_scale) times the cosine of an image's
      features and a class's.

    Raises:
      UserError: if there are no class names, or a template has no place for them.
    """
    if not class_names:
        raise UserError("a zero-shot classifier needs the names of its classes; none is given")
    texts = [text for name in class_names for text in prompts(name, templates)]
    tokens = tokenize(texts).reshape(len(class_names), len(templates), -1)

    @jax.jit
    def embed(tokens: jax.Array) -> jax.Array:
        return unit_length(clip.apply(variables, tokens, method=CLIP.encode_text).mean(axis=0))

    columns = [
        np.asarray(embed(jnp.asarray(of_class)))
        for of_class in tqdm(tokens, desc="class names", unit="class", leave=False, disable=None)
    ]
    scale = np.exp(np.float32(variables["params"]["logit_scale"]))
    head = {
        "kernel": np.stack(columns, axis=1) * scale,
        "bias": np.zeros(len(class_names), np.float32),
    }
    model = CLIPClassifier(
        num_classes=len(class_names),
        image_tower=clip.image_tower,
        statistics=clip.statistics,
        dtype=clip.dtype,
    )
    image = {name: {"image": tree["image"]} for name, tree in variables.items() if "image" in tree}
    return model, {**image, "params": {**image["params"], "head": head}}

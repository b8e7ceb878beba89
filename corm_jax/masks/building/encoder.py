"""Encoders: classifiers whose penultimate features, and where these are active, make masks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax.checkpoint import fingerprint
from corm_jax.errors import UserError, lookup
from corm_jax.models import check_image_size
from corm_jax.runs import load_run
from corm_jax.sharding import replicated

HEADS = ("fc", "head")  # the last Dense of a ResNet, of a vision transformer


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A classifier and what it is to see.

    Attributes:
      model: ResNet or vision transformer.
      variables: of the model.
      image_size: height and width of its input in pixels.
      center_crop_share: side of the central square that it sees over the image's shorter side.
      class_names: of its classes, in the order of the logits.
      head_weight: float32 [channels, classes], kernel of the last layer.
    """

    model: nn.Module
    variables: Any
    image_size: int
    center_crop_share: float
    class_names: tuple[str, ...]
    head_weight: np.ndarray

    @classmethod
    def create(
        cls,
        model: nn.Module,
        variables: Any,
        *,
        image_size: int,
        center_crop_share: float,
        class_names: tuple[str, ...],
    ) -> Self:
        """Creates an encoder from a model and its variables.

        Raises:
          UserError: if the model has another number of classes than there are names.
        """
        if model.num_classes != len(class_names):
            raise UserError(
                f"the encoder has {model.num_classes} classes, the data {len(class_names)}; build "
                "masks for the data set that it was trained on, or another with its classes"
            )
        head = next(name for name in HEADS if name in variables["params"])
        return cls(
            model=model,
            variables=variables,
            image_size=image_size,
            center_crop_share=center_crop_share,
            class_names=class_names,
            head_weight=np.asarray(variables["params"][head]["kernel"], np.float32),
        )

    def encode(self, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Runs the model; a pure function of its arguments, to be jitted or differentiated.

        Args:
          variables: the encoder's, as an argument so that a program does not hold them as
            constants.
          images: float [B, S, S, 3] in [0, 1].

        Returns:
          (logits float32 [B, K], activations float32 [B, C], maps float32 [B, h, w, C], not
          negative): the input of the last layer, and where in the image it comes from. A ResNet's
          activations are the means of the maps, its last stage. For a vision transformer, whose
          features may be negative and which Salient ImageNet does not cover, the maps are the patch
          tokens after the last norm, clipped at 0 (project choice).
        """
        logits, intermediates = self.model.apply(variables, images, train=False)
        activations = intermediates["pre_logits"].astype(jnp.float32)
        return logits, activations, _last_map(intermediates, images.shape).astype(jnp.float32)

    def fingerprint(self) -> str:
        """Returns a text that differs between encoders that give different features."""
        return (
            f"{int(fingerprint(self.variables)):08x}-{self.image_size}-{self.center_crop_share:g}"
        )


def _last_map(intermediates: dict[str, jax.Array], shape: tuple[int, ...]) -> jax.Array:
    if "tokens" not in intermediates:
        return intermediates[max(name for name in intermediates if name.startswith("stage"))]
    tokens = intermediates["tokens"]
    side = int(tokens.shape[1] ** 0.5)  # images are square; a class token may come first
    patches = tokens[:, tokens.shape[1] - side**2 :]
    return jnp.maximum(patches.reshape(shape[0], side, side, -1), 0.0)


def activation_maps(maps: jax.Array) -> jax.Array:
    """Returns neural activation maps: each channel over its maximum on the image.

    Args:
      maps: float32 [B, h, w, C], not negative.

    Returns:
      float32 [B, h, w, C] in [0, 1], 0 where the maximum is 0.

    Source: Salient ImageNet (Singla and Feizi 2022, arXiv:2110.04301), which subtracts nothing.
    """
    maximum = maps.max(axis=(1, 2), keepdims=True)
    return maps / jnp.where(maximum > 0, maximum, 1.0)


def open_encoder(config: ConfigDict, class_names: tuple[str, ...], mesh: Mesh) -> Encoder:
    """Opens the encoder that `config.encoder` names.

    Args:
      config: of a build.
      class_names: of the data.
      mesh: where the variables go, a copy on each device.

    Raises:
      UserError: if it is not there, cannot be read, or has another number of classes.
    """
    settings = config.encoder
    load = lookup(KINDS, settings.kind, "config.encoder.kind")
    if not settings.path:
        raise UserError("name the encoder: --config.encoder.path=PATH; see configs/masks.py")
    model, variables = load(Path(settings.path).expanduser(), settings.image_size)
    encoder = Encoder.create(
        model,
        variables,
        image_size=settings.image_size,
        center_crop_share=settings.center_crop_share,
        class_names=class_names,
    )
    return dataclasses.replace(encoder, variables=jax.device_put(variables, replicated(mesh)))


def _load_run(workdir: Path, image_size: int) -> tuple[nn.Module, Any]:
    """Loads what a finished run of `corm_jax.main` evaluates with."""
    run = load_run(workdir)
    check_image_size(run.description.model, image_size)
    return run.model, run.variables


def _load_robustness(path: Path, image_size: int) -> tuple[nn.Module, Any]:
    from corm_jax.masks.building import robustness  # needs torch

    del image_size  # a residual network takes any
    return robustness.load(path)


KINDS: dict[str, Callable[[Path, int], tuple[nn.Module, Any]]] = {
    "run": _load_run,
    "demo": _load_run,  # trained by `corm_jax.masks.building.demo`
    "robustness": _load_robustness,
}

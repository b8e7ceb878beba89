"""PyTorch models behind our models' interface, for evaluation: timm's, torchvision's, open_clip's.

The protocols of `corm_jax.protocols` run on them: jax draws the views, compiled, the very same ones
as for our models, and PyTorch classifies them on its own device, between the compiled parts. (A
callback from within a compiled step deadlocks on processors with few cores and on several devices.)
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from corm_jax import state_dicts
from corm_jax.errors import UserError, lookup, nearest
from corm_jax.models.normalizer import Statistics
from corm_jax.models.zero_shot import TEMPLATES, prompts
from corm_jax.protocols import PROTOCOLS, with_identity
from corm_jax.protocols.types import EvalStep
from corm_jax.torch_weights import IGNORED, check_fit


class TorchModel:
    """A PyTorch classifier on images in [0, 1].

    Attributes:
      num_classes: number of logits.
      statistics: mean and standard deviation of the input normaliser.
      packages: distributions that it runs on.
    """

    def __init__(
        self,
        module: Any,
        *,
        num_classes: int,
        statistics: Statistics,
        device: str,
        packages: tuple[str, ...] = ("torch",),
    ) -> None:
        """Wraps a `torch.nn.Module` in its evaluation mode.

        Args:
          module: maps normalised images float32 [B, 3, H, W] to logits [B, num_classes].
          num_classes: number of logits.
          statistics: of the input normaliser.
          device: PyTorch's name of where to run it, such as "cpu" or "cuda:0".
          packages: distributions that it runs on.
        """
        self._module = module.to(device).eval()
        self._device = device
        self.num_classes = num_classes
        self.statistics = statistics
        self.packages = packages

    def weights(self) -> dict[str, np.ndarray]:
        """Returns the state dict."""
        return {key: value.cpu().numpy() for key, value in self._module.state_dict().items()}

    def logits(self, images: Any) -> np.ndarray:
        """Classifies images.

        Args:
          images: float32 [B, H, W, 3] in [0, 1], numpy's or jax's.

        Returns:
          float32 [B, num_classes].
        """
        import torch

        mean, std = (np.asarray(values, np.float32) for values in self.statistics)
        normalized = (np.asarray(images, np.float32) - mean) / std
        with torch.inference_mode():
            inputs = torch.from_numpy(normalized).permute(0, 3, 1, 2).contiguous()
            return self._module(inputs.to(self._device)).float().cpu().numpy()

    def apply(
        self, variables: Any, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies images as `flax.linen.Module.apply` does, but not under jit.

        Args:
          variables: ignored: the weights are PyTorch's; pass {}.
          images: float32 [B, H, W, 3] in [0, 1].
          train: must be False.

        Returns:
          (logits float32 [B, num_classes], {}).
        """
        del variables
        if train:
            raise ValueError("a PyTorch model is for evaluation only")
        return jnp.asarray(self.logits(images)), {}


def make_eval_step(protocol: str, model: TorchModel, config: ConfigDict) -> EvalStep:
    """Makes the step of a protocol for a PyTorch model; see `corm_jax.protocols.measure`.

    Args:
      protocol: a key of `corm_jax.protocols.PROTOCOLS`.
      model: the model; its variables are {}.
      config: with `eval`.

    Raises:
      UserError: for an unknown protocol; names the nearest one.
    """
    return with_identity(lookup(PROTOCOLS, protocol, "protocol")(model, config, scan=_loop))


def _loop(
    step: Callable[[Any, jax.Array], tuple[Any, Any]], carry: Any, values: jax.Array
) -> tuple[Any, Any]:
    """Does what `jax.lax.scan` does, uncompiled."""
    outputs = []
    for value in values:
        carry, output = step(carry, value)
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


class ZeroShot:
    """An open_clip model as a module that classifies by the names of classes.

    As `corm_jax.models.zero_shot`, whose templates it takes. The texts are embedded at the first
    call, when the weights are there.
    """

    def __init__(self, clip: Any, tokens: Any) -> None:
        """Takes open_clip's model and int tokens [C, T, L] of the T prompts of each class."""
        self._clip, self._tokens = clip, tokens
        self._head: Any = None

    def to(self, device: str) -> "ZeroShot":
        """Moves it to a device."""
        self._clip, self._tokens = self._clip.to(device), self._tokens.to(device)
        return self

    def eval(self) -> "ZeroShot":
        """Sets the evaluation mode."""
        self._clip.eval()
        return self

    def state_dict(self) -> dict[str, Any]:
        """Returns open_clip's model's."""
        return self._clip.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads open_clip's model's."""
        self._clip.load_state_dict(state)

    def __call__(self, images: Any) -> Any:
        """Maps normalised images [B, 3, H, W] to logits [B, C]."""
        import torch
        from torch.nn.functional import normalize

        if self._head is None:
            columns = [self._clip.encode_text(t, normalize=True).mean(0) for t in self._tokens]
            self._head = normalize(torch.stack(columns), dim=1)
        features = self._clip.encode_image(images, normalize=True)
        return self._clip.logit_scale.exp() * features @ self._head.T


def load(
    name: str, *, weights: Path | None, class_names: Sequence[str], image_size: int, device: str
) -> TorchModel:
    """Loads a PyTorch model.

    Args:
      name: "timm:NAME", "torchvision:NAME" or "open_clip:NAME", which classifies by the names of
        the classes (see `ZeroShot`); without a library it is timm's.
      weights: state dict of the model, of a format of `corm_jax.state_dicts`; its own normaliser
        is used if it has one. None for random weights.
      class_names: one for each logit, in their order.
      image_size: height and width of its images in pixels.
      device: PyTorch's name of where to run it, such as "cpu" or "cuda:0".

    Raises:
      UserError: if the library, the model or the file is not there, the model does not take such
        images, or the weights do not fit; names every wrong key at once.
    """
    library, _, own_name = name.rpartition(":")
    source = lookup(LIBRARIES, library or "timm", "library of models")
    module, statistics = source.create(own_name, class_names, image_size)
    if weights is not None:
        state, own = state_dicts.read(weights)
        statistics = own or statistics
        try:
            _load_state(module, state)
        except UserError as error:
            raise UserError(f"{weights} as {name}: {error}") from error
    num_classes = len(class_names)
    model = TorchModel(
        module,
        num_classes=num_classes,
        statistics=statistics,
        device=device,
        packages=("torch", source.distribution),
    )
    try:
        shape = model.logits(np.zeros((1, image_size, image_size, 3), np.float32)).shape
    except (RuntimeError, ValueError, AssertionError) as error:  # PyTorch has no class for it
        raise UserError(f"{name} takes no images of {image_size} pixels: {error}") from error
    if shape != (1, num_classes):
        raise UserError(f"{name} gives no {num_classes} logits an image, but {shape}")
    return model


def _load_state(module: Any, state: state_dicts.State) -> None:
    import torch

    own = module.state_dict()
    # Our own exports, among others, have no counts of batches.
    needed = {key: value for key, value in own.items() if key in state or IGNORED not in key}
    expected = {key: tuple(value.shape) for key, value in needed.items()}
    check_fit(expected, {key: value.shape for key, value in state.items()})
    given = {key: torch.tensor(value) for key, value in state.items()}
    module.load_state_dict({**own, **given})


def _timm(name: str, class_names: Sequence[str], image_size: int) -> tuple[Any, Statistics]:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"timm's {name} needs timm: pip install 'corm_jax[torch]'") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    module = timm.create_model(name, num_classes=len(class_names))
    expected = module.pretrained_cfg["input_size"][-1]
    if image_size != expected and module.pretrained_cfg["fixed_input_size"]:
        module = timm.create_model(name, num_classes=len(class_names), img_size=image_size)
    cfg = module.pretrained_cfg
    return module, Statistics(tuple(cfg["mean"]), tuple(cfg["std"]))


def _torchvision(name: str, class_names: Sequence[str], image_size: int) -> tuple[Any, Statistics]:
    try:
        from torchvision import models
    except ImportError as error:
        raise UserError(
            f"torchvision's {name} needs torchvision: pip install 'corm_jax[torch]'"
        ) from error
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"torchvision has no model {name!r}{nearest(name, known)}")
    create = partial(models.get_model, name, weights=None, num_classes=len(class_names))
    module = create()
    if getattr(module, "image_size", image_size) != image_size:  # of vision transformers
        module = create(image_size=image_size)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    return module, Statistics(tuple(transforms.mean), tuple(transforms.std))


def _open_clip(
    name: str, class_names: Sequence[str], image_size: int
) -> tuple[ZeroShot, Statistics]:
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            f"open_clip's {name} needs open_clip: pip install 'corm_jax[clip,torch]' ({error})"
        ) from error
    config = open_clip.get_model_config(name)
    if config is None:
        raise UserError(f"open_clip has no model {name!r}{nearest(name, open_clip.list_models())}")
    if "hf_model_name" in config["text_cfg"] or "hf_tokenizer_name" in config["text_cfg"]:
        raise UserError(f"open_clip's {name} needs files of texts that are not in open_clip itself")
    clip = open_clip.create_model(name, load_weights=False, force_image_size=image_size)
    texts = [prompts(class_name, TEMPLATES) for class_name in _readable(class_names)]
    tokenize = open_clip.get_tokenizer(name)
    tokens = tokenize([text for of_class in texts for text in of_class])
    visual = clip.visual
    return (
        ZeroShot(clip, tokens.reshape(len(texts), len(TEMPLATES), -1)),
        Statistics(tuple(visual.image_mean), tuple(visual.image_std)),
    )


def _readable(class_names: Sequence[str]) -> Sequence[str]:
    """Returns names of classes that a text encoder can read: for ImageNet's ids, CLIP's names."""
    if not all(re.fullmatch(r"n\d{8}", name) for name in class_names):
        return class_names
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    if len(class_names) != len(IMAGENET_CLASSNAMES):
        raise UserError(
            f"the {len(class_names)} classes are WordNet ids, such as {class_names[0]}, which CLIP "
            "cannot read; only for all 1000 of ImageNet their names are known"
        )
    return IMAGENET_CLASSNAMES  # in the order of the ids


class Library(NamedTuple):
    """Where models come from.

    Attributes:
      distribution: the name that pip knows it by.
      create: (name, names of the classes, image size) -> (module, its input normaliser's).
    """

    distribution: str
    create: Callable[[str, Sequence[str], int], tuple[Any, Statistics]]


LIBRARIES = {
    "timm": Library("timm", _timm),
    "torchvision": Library("torchvision", _torchvision),
    "open_clip": Library("open_clip_torch", _open_clip),
}

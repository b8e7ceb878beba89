"""A small model of each family against PyTorch's; benchmarks/conversion.py compares all names."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from command import REPOSITORY
from torch_models import import_parity, import_timm, import_torchvision, randomize

from corm_jax.errors import UserError
from corm_jax.models import MODELS, create_model
from corm_jax.models.densenet import DenseNet
from corm_jax.models.normalizer import IMAGENET
from corm_jax.models.resnet import Bottleneck, ResNet
from corm_jax.models.vit import VisionTransformer
from corm_jax.state_dicts import read_safetensors
from corm_jax.torch_weights import abstract_variables, naming, to_flax, to_torch

CLASSES, SIZE = 5, 32
vit = partial(
    VisionTransformer,
    num_classes=CLASSES,
    patch_size=8,
    width=24,
    depth=2,
    heads=3,
    statistics=IMAGENET,
)
densenet = DenseNet(num_classes=CLASSES, block_sizes=(2, 1), statistics=IMAGENET, growth=8)


def timm_resnext() -> Any:
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], cardinality=4, base_width=32, num_classes=CLASSES)


def timm_vit(**arguments: Any) -> Any:
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    distilled = arguments.pop("distilled", False)
    constructor = VisionTransformerDistilled if distilled else VisionTransformer
    return constructor(num_classes=CLASSES, **shape, **arguments)


def timm_densenet() -> Any:
    from timm.models.densenet import DenseNet

    return DenseNet(growth_rate=8, block_config=(2, 1), num_classes=CLASSES)


def torchvision_vit() -> Any:
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIZE, 8, 2, 3, 24, 96, num_classes=CLASSES)


def torchvision_densenet() -> Any:
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 1), num_init_features=16, num_classes=CLASSES)


PAIRS: dict[str, tuple[nn.Module, Callable[[], Any], str]] = {
    "resnext": (
        ResNet(
            num_classes=CLASSES,
            stage_sizes=(1, 1, 1, 1),
            block=partial(Bottleneck, groups=4, group_width=32),
            statistics=IMAGENET,
        ),
        timm_resnext,
        "timm",
    ),
    "vit": (vit(), timm_vit, "timm"),
    "gap": (
        vit(global_pool="avg"),
        partial(timm_vit, global_pool="avg", class_token=False, fc_norm=False),
        "timm",
    ),
    "distilled": (vit(distilled=True), partial(timm_vit, distilled=True), "timm"),
    "vit of torchvision": (vit(), torchvision_vit, "torchvision"),
    "densenet": (densenet, timm_densenet, "timm"),
    "densenet of torchvision": (densenet, torchvision_densenet, "torchvision"),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_logits_and_input_gradients_are_the_librarys_both_ways(kind: str) -> None:
    import_timm()
    ours, create, library = PAIRS[kind]
    parity = import_parity().compare(ours, create(), library=library, image_size=SIZE)
    assert parity.logits < 1e-4
    assert parity.gradient < 1e-3
    assert parity.exact


def test_normalizers_are_those_of_timms_weights() -> None:
    timm = import_timm()
    names = [name for name in MODELS if timm.is_model(name)]
    assert len(names) >= 24
    for name in names:
        config = timm.get_pretrained_cfg(name)
        statistics = create_model(name, num_classes=2, dtype="float32").statistics
        assert (statistics.mean, statistics.std) == (config.mean, config.std), name


@pytest.mark.parametrize("name", ["resnext50_32x4d", "deit_tiny_distilled_patch16_224"])
def test_variants_have_timms_names_and_shapes(name: str) -> None:
    import_timm()
    parity = import_parity()
    state = parity.state_of(parity.LIBRARIES["timm"](name, 224))
    to_flax(create_model(name, num_classes=parity.CLASSES, dtype="float32"), state, image_size=224)


def test_library_is_told_by_the_names() -> None:
    import_torchvision()
    state = {key: value.numpy() for key, value in torchvision_vit().state_dict().items()}
    assert naming(vit(), state, image_size=SIZE) == "torchvision"
    renamed = to_torch(vit(), to_flax(vit(), state, image_size=SIZE))
    assert naming(vit(), renamed, image_size=SIZE) == "timm"
    del state["class_token"]
    with pytest.raises(UserError, match=r"model; 1 missing: class_token$"):
        to_flax(vit(), state, image_size=SIZE)


def test_a_library_without_such_a_model_is_refused() -> None:
    model = vit(distilled=True)
    shapes = abstract_variables(model, SIZE)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with pytest.raises(UserError, match="torchvision has no such model: no name for dist_token"):
        to_torch(model, variables, library="torchvision")
    with pytest.raises(UserError, match=r"unknown library 'torchvison'.* 'torchvision'"):
        to_torch(model, variables, library="torchvison")


def test_weights_for_another_image_size_are_named() -> None:
    import_timm()
    state = {key: value.numpy() for key, value in randomize(timm_vit()).state_dict().items()}
    message = r"1 of another shape: pos_embed \(1, 17, 24\) instead of \(1, 37, 24\)"
    with pytest.raises(UserError, match=message):
        to_flax(vit(), state, image_size=48)


def test_trained_deit_gives_timms_logits() -> None:
    path = REPOSITORY.parent / "shared" / "data" / "deit_tiny_patch16_224.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    import torch

    timm = import_timm()
    state = read_safetensors(path)
    theirs = timm.create_model("deit_tiny_patch16_224").eval()
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    images = np.random.default_rng(1).uniform(size=(1, 224, 224, 3)).astype(np.float32)
    config = theirs.pretrained_cfg
    normalized = (images - np.float32(config["mean"])) / np.float32(config["std"])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(normalized.transpose(0, 3, 1, 2))).numpy()
    ours = create_model("deit_tiny_patch16_224", num_classes=1000, dtype="float32")
    logits, _ = jax.jit(ours.apply, static_argnames="train")(
        to_flax(ours, state, image_size=224), images, train=False
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())

"""Class activation maps: by hand, and against PyTorch's autograd on PyTorch's own models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import draw_variables
from torch_models import import_torchvision, randomize

from corm_jax.errors import UserError
from corm_jax.losses.shared import linearize_maps
from corm_jax.models import create_model
from corm_jax.models.clip import CLIPClassifier
from corm_jax.models.clip_image import ResNetTower, VisionTower
from corm_jax.models.convnext import ConvNeXt
from corm_jax.models.densenet import DenseNet
from corm_jax.models.gelu import gelu
from corm_jax.models.normalizer import Statistics
from corm_jax.models.resnet import BasicBlock, ResNet
from corm_jax.models.swin import SwinTransformer
from corm_jax.models.vit import VisionTransformer
from corm_jax.saliency import CAM_METHODS, class_activation_maps, grad_cam, hires_cam
from corm_jax.torch_weights import to_flax

CLASSES, SIZE = 5, 32
# timm's defaults; its models take normalised images.
UNIT = Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_values_are_those_computed_by_hand():
    maps = jnp.asarray([[1.0, 2.0], [3.0, -1.0]]).reshape(1, 1, 2, 2)
    gradients = jnp.asarray([[4.0, -1.0], [0.0, 3.0]]).reshape(1, 1, 2, 2)
    # Means over the two places: 2 and 1.
    np.testing.assert_array_equal(grad_cam(maps, gradients), [[[2 * 1 + 1 * 2, 2 * 3 - 1]]])
    np.testing.assert_array_equal(hires_cam(maps, gradients), [[[4 * 1 - 1 * 2, 0]]])


def theirs_and_ours(name):
    """Returns (PyTorch's model, its module whose output has the maps, tokens before, ours)."""
    torchvision = import_torchvision()
    if name == "resnet18":
        theirs = randomize(torchvision.models.resnet18(weights=None, num_classes=CLASSES))
        ours = create_model(name, num_classes=CLASSES, dtype="float32").clone(statistics=UNIT)
        return theirs, theirs.layer4, 0, ours
    timm = pytest.importorskip("timm")
    pool, distilled = {"vit": ("token", False), "vit_avg": ("avg", False)}.get(
        name, ("token", True)
    )
    sizes = {"patch_size": 8, "num_classes": CLASSES}
    arguments = {**sizes, "img_size": SIZE, "embed_dim": 24, "depth": 2, "num_heads": 3}
    if distilled:
        theirs = timm.models.deit.VisionTransformerDistilled(**arguments)
    else:
        theirs = timm.models.vision_transformer.VisionTransformer(
            **arguments, global_pool=pool, class_token=pool == "token", fc_norm=False
        )
    ours = VisionTransformer(
        **sizes,
        width=24,
        depth=2,
        heads=3,
        statistics=UNIT,
        global_pool=pool,
        distilled=distilled,
    )
    theirs = randomize(theirs)
    module = theirs.norm if pool == "avg" else theirs.blocks[-1].norm1
    return theirs, module, {"avg": 0, "token": 1}[pool] + distilled, ours


@pytest.mark.parametrize("name", ["resnet18", "vit", "vit_avg", "deit_distilled"])
def test_maps_of_models_are_those_of_pytorchs_autograd(name):
    torch = pytest.importorskip("torch")
    theirs, module, before, ours = theirs_and_ours(name)
    images = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    classes = np.array([3, 1])

    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    module.register_forward_hook(keep)
    logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    logits[torch.arange(2), torch.from_numpy(classes)].sum().backward()
    found = [kept[0].detach().numpy().astype(float), kept[0].grad.numpy().astype(float)]
    if name == "resnet18":
        found = [array.transpose(0, 2, 3, 1) for array in found]
    else:
        found = [array[:, before:].reshape(2, SIZE // 8, SIZE // 8, -1) for array in found]
    maps, gradients = found
    expected = {
        "grad_cam": np.einsum("bhwk,bk->bhw", maps, gradients.mean(axis=(1, 2))).clip(0),
        "hires_cam": np.einsum("bhwk,bhwk->bhw", maps, gradients).clip(0),
    }

    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    variables = to_flax(ours, state, image_size=SIZE)
    forward = partial(ours.apply, variables, train=False)
    for method in CAM_METHODS:
        compute = jax.jit(partial(class_activation_maps, forward, method=method))
        cams, (our_logits, _) = compute(images, classes)
        assert expected[method].max() > 1e-4
        tolerance = 1e-4 * expected[method].max()
        np.testing.assert_allclose(cams, expected[method], rtol=1e-3, atol=tolerance)
        np.testing.assert_allclose(our_logits, logits.detach(), rtol=1e-3, atol=1e-4)


# Small ones of each family. What the maps of the first two are compared with PyTorch's above.
FAMILIES = {
    "resnet": ResNet(
        num_classes=CLASSES, block=BasicBlock, stage_sizes=(1, 1), width=8, statistics=UNIT
    ),
    "vit": VisionTransformer(
        num_classes=CLASSES, patch_size=8, width=24, depth=2, heads=3, statistics=UNIT
    ),
    "densenet": DenseNet(num_classes=CLASSES, block_sizes=(1, 2), growth=4, statistics=UNIT),
    "convnext": ConvNeXt(num_classes=CLASSES, depths=(1, 2), widths=(8, 12), statistics=UNIT),
    "swin": SwinTransformer(
        num_classes=CLASSES,
        patch_size=4,
        depths=(1, 2),
        width=8,
        heads=(2, 4),
        window=4,
        statistics=UNIT,
    ),
    "clip_vit": CLIPClassifier(
        num_classes=CLASSES,
        image_tower=partial(
            VisionTower, features=6, patch_size=8, width=16, depth=2, heads=2, activation=gelu
        ),
    ),
    "clip_resnet": CLIPClassifier(
        num_classes=CLASSES,
        image_tower=partial(ResNetTower, features=6, stage_sizes=(1, 1), width=8, heads=4),
    ),
}
SUMS = ("resnet", "densenet", "swin")  # their heads see the mean of the maps


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_follow_the_offset_of_the_maps(family):
    model = FAMILIES[family]
    images = np.random.default_rng(2).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    variables = draw_variables(model, SIZE)
    forward = jax.jit(partial(model.apply, variables, train=False))
    logits, intermediates = forward(images)
    maps = intermediates["maps"]
    direction = np.random.default_rng(3).normal(size=maps.shape).astype(np.float32)
    step = 1e-2
    moved = [forward(images, maps_offset=sign * step * direction) for sign in (1, -1)]
    np.testing.assert_allclose(moved[0][1]["maps"], maps + step * direction, rtol=1e-5, atol=1e-5)
    slope = (moved[0][0] - moved[1][0]) / (2 * step)
    _, push = linearize_maps(forward, images)
    np.testing.assert_allclose(push(direction), slope, rtol=2e-2, atol=1e-2 * abs(slope).max())
    assert abs(slope).max() > 1e-3 * abs(logits).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_class_maps_sum_to_the_logits_where_the_head_sees_their_mean(family):
    model = FAMILIES[family].clone(head_bias=False)
    images = np.random.default_rng(2).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    logits, intermediates = model.apply(draw_variables(model, SIZE), images, train=False)
    assert ("class_maps" in intermediates) == (family in SUMS)
    if family in SUMS:
        sums = intermediates["class_maps"].sum(axis=(1, 2))
        np.testing.assert_allclose(sums, logits, rtol=1e-4, atol=1e-5)


def test_a_model_without_maps_and_an_unknown_method_are_named():
    images, classes = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1, jnp.int32)

    def forward(images, maps_offset=0.0):
        return images.sum(axis=(1, 2)) + maps_offset, {}

    with pytest.raises(UserError, match="class activation maps need a model that returns `maps`"):
        class_activation_maps(forward, images, classes, method="grad_cam")
    with pytest.raises(UserError, match="did you mean 'grad_cam'"):
        class_activation_maps(forward, images, classes, method="gradcam")

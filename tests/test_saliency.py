"""Class activation maps: by hand, and against PyTorch's autograd on PyTorch's own models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_models import import_torchvision, randomize

from corm_jax.errors import UserError
from corm_jax.models import create_model
from corm_jax.models.normalizer import Statistics
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


def test_a_model_without_maps_and_an_unknown_method_are_named():
    images, classes = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1, jnp.int32)

    def forward(images, maps_offset=0.0):
        return images.sum(axis=(1, 2)) + maps_offset, {}

    with pytest.raises(UserError, match="class activation maps need a model that returns `maps`"):
        class_activation_maps(forward, images, classes, method="grad_cam")
    with pytest.raises(UserError, match="did you mean 'grad_cam'"):
        class_activation_maps(forward, images, classes, method="gradcam")

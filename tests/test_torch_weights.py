"""Weights of ResNets to and from PyTorch's names and layouts, against torchvision and timm."""

import jax
import numpy as np
import pytest
from torch_models import import_torchvision, randomize

from corm_jax.errors import UserError
from corm_jax.models import create_model
from corm_jax.models.normalizer import IMAGENET
from corm_jax.models.resnet import BasicBlock, ResNet
from corm_jax.torch_weights import to_flax, to_torch

NAMES = ("resnet18", "resnet50")
TINY = ResNet(num_classes=3, stage_sizes=(1, 1), block=BasicBlock, statistics=IMAGENET, width=4)


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    """(our model, torchvision's with random weights) of the same name."""
    models = import_torchvision().models
    theirs = randomize(models.get_model(request.param, weights=None, num_classes=11))
    return create_model(request.param, num_classes=11, dtype="float32"), theirs


def state_of(module):
    return {key: value.numpy() for key, value in module.state_dict().items()}


def tiny_state(seed=0):
    """A state dict of TINY, made from its shapes."""
    images = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda: TINY.init(jax.random.key(0), images, train=False))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    rng = np.random.default_rng(seed)
    return {
        key: rng.normal(size=value.shape).astype(np.float32)
        for key, value in to_torch(TINY, variables).items()
    }


def test_logits_and_last_map_are_torchvisions(pair):
    import torch

    ours, theirs = pair
    images = np.random.default_rng(1).uniform(size=(2, 71, 64, 3)).astype(np.float32)
    normalized = (images - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
    maps = []
    hook = theirs.layer4.register_forward_hook(lambda module, args, output: maps.append(output))
    with torch.no_grad():
        logits = theirs(torch.from_numpy(normalized.transpose(0, 3, 1, 2))).numpy()
    hook.remove()
    found, intermediates = jax.jit(ours.apply, static_argnames="train")(
        to_flax(ours, state_of(theirs), image_size=64), images, train=False
    )
    assert abs(logits).max() > 0.1
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4 * abs(logits).max())
    last = maps[0].numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(intermediates["stage4"], last, rtol=1e-4, atol=1e-4 * last.max())


def test_there_and_back_changes_no_bit(pair):
    ours, theirs = pair
    state = state_of(theirs)
    back = to_torch(ours, to_flax(ours, state, image_size=64))
    assert back.keys() == {key for key in state if not key.endswith("num_batches_tracked")}
    for key, value in back.items():
        assert value.dtype == state[key].dtype == np.float32
        np.testing.assert_array_equal(value.view(np.int32), state[key].view(np.int32), key)


def test_torchvision_loads_what_we_write(pair):
    import torch

    ours, theirs = pair
    written = to_torch(ours, to_flax(ours, state_of(theirs), image_size=64))
    other = type(theirs)(
        type(theirs.layer1[0]), [len(theirs.get_submodule(f"layer{n}")) for n in range(1, 5)], 11
    ).eval()
    other.load_state_dict({key: torch.tensor(value) for key, value in written.items()})
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other(images), theirs(images))


def test_layouts_of_kernels_are_transposed_not_reshaped():
    state = tiny_state()
    variables = to_flax(TINY, state, image_size=64)
    params, statistics = variables["params"], variables["batch_stats"]
    block, norms = params["layer2_block0"], statistics["layer2_block0"]
    for row, column, inputs, outputs in np.ndindex(3, 3, 4, 8):
        assert (
            block["conv1"]["kernel"][row, column, inputs, outputs]
            == state["layer2.0.conv1.weight"][outputs, inputs, row, column]
        )
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)
    for ours, theirs in {
        "downsample_conv": "downsample.0",
        "downsample_bn": "downsample.1",
        "bn2": "bn2",
    }.items():
        for leaf in block[ours].keys() - {"kernel"}:
            name = {"scale": "weight", "bias": "bias"}[leaf]
            np.testing.assert_array_equal(block[ours][leaf], state[f"layer2.0.{theirs}.{name}"])
    np.testing.assert_array_equal(
        norms["downsample_bn"]["var"], state["layer2.0.downsample.1.running_var"]
    )
    np.testing.assert_array_equal(norms["bn1"]["mean"], state["layer2.0.bn1.running_mean"])


def test_half_precision_weights_become_float32_exactly():
    state = {key: value.astype(np.float16) for key, value in tiny_state().items()}
    variables = to_flax(TINY, state, image_size=64)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(variables["params"]["fc"]["bias"], state["fc.bias"])


def test_all_wrong_keys_are_named_at_once():
    state = tiny_state()
    del state["bn1.running_var"], state["layer1.0.conv2.weight"]
    state["layer9.0.conv1.weight"] = state["fc.bias"]
    state["fc.weight"] = state["fc.weight"][:, :-1]
    with pytest.raises(UserError) as error:
        to_flax(TINY, state, image_size=64)
    assert str(error.value) == (
        "the weights do not fit the model; 2 missing: bn1.running_var, layer1.0.conv2.weight; "
        "1 unknown: layer9.0.conv1.weight; 1 of another shape: fc.weight (3, 7) instead of (3, 8)"
    )


def test_every_key_of_a_file_without_any_is_named_in_one_line():
    with pytest.raises(UserError, match="32 missing: bn1") as error:
        to_flax(TINY, {}, image_size=64)
    assert "\n" not in str(error.value)
    assert all(key in str(error.value) for key in tiny_state())

"""Models' values against independent computations in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from corm_jax.models.normalizer import IMAGENET, Statistics
from corm_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from corm_jax.models.vit import PatchEmbed, VisionTransformer

UNIT = Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
TINY = {
    "resnet": ResNet(
        num_classes=2, stage_sizes=(1,), block=BasicBlock, statistics=IMAGENET, width=2
    ),
    "vit": VisionTransformer(
        num_classes=2, patch_size=4, width=8, depth=1, heads=2, statistics=IMAGENET
    ),
}


def abstract(model, images):
    """Returns the shapes of a model's variables."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


def randomized(variables, seed=0, scale=0.5):
    """Replaces every array by random values, positive ones for variances."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(0, scale, leaf.shape)
        return jnp.asarray(abs(values) if path[-1].key == "var" else values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def numpy_conv(x, kernel, stride, padding):
    """Correlates x [B, H, W, C] with kernel [h, w, C, D] after symmetric zero padding."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = kernel.shape[:2]
    rows = range(0, x.shape[1] - height + 1, stride)
    columns = range(0, x.shape[2] - width + 1, stride)
    return np.stack(
        [
            np.stack(
                [np.tensordot(x[:, r : r + height, c : c + width], kernel, 3) for c in columns], 1
            )
            for r in rows
        ],
        1,
    )


def numpy_max_pool(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    return np.stack(
        [
            np.stack(
                [x[:, r : r + 3, c : c + 3].max(axis=(1, 2)) for c in range(0, x.shape[2] - 2, 2)],
                1,
            )
            for r in range(0, x.shape[1] - 2, 2)
        ],
        1,
    )


def numpy_resnet(variables, images, statistics, stages, blocks):
    """Runs a ResNet of one block a stage; `blocks` lists (kernel, strided) of a block's convs."""
    params, stats = variables["params"], variables["batch_stats"]

    def norm(x, p, s):
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    x = (images - statistics.mean) / statistics.std
    x = numpy_conv(x, params["conv1"]["kernel"], 2, 3)
    x = numpy_max_pool(np.maximum(norm(x, params["bn1"], stats["bn1"]), 0))
    for stage in range(1, stages + 1):
        p, s = params[f"layer{stage}_block0"], stats[f"layer{stage}_block0"]
        stride = 1 if stage == 1 else 2
        y = x
        for index, (kernel, strided) in enumerate(blocks, 1):
            y = numpy_conv(y, p[f"conv{index}"]["kernel"], stride if strided else 1, kernel // 2)
            y = norm(y, p[f"bn{index}"], s[f"bn{index}"])
            if index < len(blocks):
                y = np.maximum(y, 0)
        if "downsample_conv" in p:
            x = numpy_conv(x, p["downsample_conv"]["kernel"], stride, 0)
            x = norm(x, p["downsample_bn"], s["downsample_bn"])
        x = np.maximum(x + y, 0)
    return x.mean(axis=(1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


@pytest.mark.parametrize(
    ("block", "blocks"),
    [
        (BasicBlock, [(3, True), (3, False)]),
        (Bottleneck, [(1, False), (3, True), (1, False)]),
    ],
)
@pytest.mark.parametrize("size", [21, 32])
def test_resnet_equals_a_numpy_computation(block, blocks, size):
    model = ResNet(num_classes=3, stage_sizes=(1, 1), block=block, statistics=IMAGENET, width=4)
    images = np.random.default_rng(1).uniform(size=(2, size, size, 3))
    inputs = jnp.asarray(images, jnp.float32)
    variables = randomized(abstract(model, inputs))
    # A channel of nearly no variance shows the epsilon.
    stem = variables["batch_stats"]["bn1"]
    stem["var"] = stem["var"].at[0].set(1e-6)
    logits, _ = jax.jit(model.apply, static_argnames="train")(variables, inputs, train=False)
    expected = numpy_resnet(double(variables), images, IMAGENET, 2, blocks)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_training_pass_moves_running_averages_by_a_tenth_towards_the_batch():
    model = ResNet(
        num_classes=2,
        stage_sizes=(1,),
        block=BasicBlock,
        statistics=UNIT,
        width=4,
        small_images=True,
    )
    images = np.random.default_rng(1).uniform(size=(3, 8, 8, 3))
    inputs = jnp.asarray(images, jnp.float32)
    variables = randomized(abstract(model, inputs))
    _, updates = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
    old, new = variables["batch_stats"]["bn1"], updates["batch_stats"]["bn1"]
    values = numpy_conv(images, double(variables["params"]["conv1"]["kernel"]), 2, 1)
    mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))  # biased
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * variance, rtol=1e-5)


def numpy_vit(params, images, statistics, patch, heads, pool):
    """Runs a vision transformer of one block."""

    def norm(x, p):
        centered = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
        return centered / deviation * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def attend(x, p):
        projected = dense(x, p["qkv"])
        width, size = x.shape[-1], x.shape[-1] // heads
        out = np.zeros_like(x)
        for image in range(len(x)):
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                q, k, v = (
                    projected[image, :, i * width : (i + 1) * width][:, part] for i in range(3)
                )
                weights = np.exp(q @ k.T / np.sqrt(size))
                out[image, :, part] = weights / weights.sum(axis=1, keepdims=True) @ v
        return dense(out, p["proj"])

    images = (images - statistics.mean) / statistics.std
    x = (
        numpy_conv(images, params["patch_embed"]["kernel"], patch, 0)
        + params["patch_embed"]["bias"]
    )
    x = x.reshape(len(x), -1, x.shape[-1])
    if pool == "token":
        x = np.concatenate([np.repeat(params["cls_token"], len(x), axis=0), x], axis=1)
    x = x + params["pos_embed"]
    block = params["block00"]
    x = x + attend(norm(x, block["norm1"]), block["attn"])
    y = dense(norm(x, block["norm2"]), block["fc1"])
    x = x + dense(y * (1 + erf(y / np.sqrt(2))) / 2, block["fc2"])
    x = norm(x, params["norm"])
    return dense(x[:, 0] if pool == "token" else x.mean(axis=1), params["head"])


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_vit_equals_a_numpy_computation(pool):
    model = VisionTransformer(
        num_classes=3,
        patch_size=4,
        width=8,
        depth=1,
        heads=2,
        statistics=IMAGENET,
        global_pool=pool,
    )
    images = np.random.default_rng(1).uniform(size=(2, 8, 12, 3))
    inputs = jnp.asarray(images, jnp.float32)
    variables = randomized(abstract(model, inputs))
    # Tokens of a variance near the layer norm's epsilon show it.
    for name in ("patch_embed", "pos_embed", "cls_token"):
        if name in variables["params"]:
            variables["params"][name] = jax.tree.map(
                lambda leaf: leaf * 1e-3, variables["params"][name]
            )
    logits, _ = model.apply(variables, inputs, train=False)
    expected = numpy_vit(double(variables["params"]), images, IMAGENET, 4, 2, pool)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TINY))
def test_image_of_the_mean_colour_reaches_the_first_layer_as_zeros(name):
    images = jnp.broadcast_to(jnp.asarray(IMAGENET.mean, jnp.float32), (1, 8, 8, 3))
    seen = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv | PatchEmbed):
            seen.append(args[0])
        return call(*args, **kwargs)

    variables = randomized(abstract(TINY[name], images))
    with nn.intercept_methods(spy):
        TINY[name].apply(variables, images, train=False)
    np.testing.assert_array_equal(seen[0], np.zeros((1, 8, 8, 3)))

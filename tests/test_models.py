"""Models by name: timm's parameter counts, shapes, dtypes, initial values, errors."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from corm_jax.errors import UserError
from corm_jax.models import MODELS, check_image_size, create_model, default_image_size
from corm_jax.models.normalizer import Statistics
from corm_jax.models.positions import sincos_positions
from corm_jax.models.vit import VisionTransformer

# The first variant of each family, and of each kind of CLIP's image towers.
ONE_OF_EACH = [*{part.func: name for name, part in reversed(MODELS.items())}.values(), "ViT-B-32"]
UNIT = Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def shapes_of(name, *, classes=1000, size=224, dtype="float32"):
    """Returns (variables, (logits, intermediates)) as shapes, nothing computed."""
    model = create_model(name, num_classes=classes, dtype=dtype)
    images = jnp.zeros((2, size, size, 3), jnp.float32)

    def run():
        variables = model.init(jax.random.key(0), images, train=False)
        return variables, model.apply(variables, images, train=False)

    return jax.eval_shape(run)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("wide_resnet50_2", 68_883_240),
        ("resnext50_32x4d", 25_028_904),
        ("densenet121", 7_978_856),
        ("convnext_tiny", 28_589_128),
        ("convnext_small", 50_223_688),
        ("convnext_base", 88_591_464),
        ("swin_tiny_patch4_window7_224", 28_288_354),
        ("swin_small_patch4_window7_224", 49_606_258),
        ("swin_base_patch4_window7_224", 87_768_224),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
    ],
)
def test_parameter_count_is_timms(name, count):
    variables, _ = shapes_of(name)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_bfloat16_computes_in_it_but_keeps_parameters_and_logits_in_float32(name):
    with jax.numpy_dtype_promotion("standard"):  # Flax's own norms mix dtypes
        variables, (logits, intermediates) = shapes_of(
            name, classes=7, size=default_image_size(name), dtype="bfloat16"
        )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in intermediates.values())


def test_resnet_intermediates():
    _, (_, intermediates) = shapes_of("resnet50")
    assert {name: leaf.shape for name, leaf in intermediates.items()} == {
        "stage1": (2, 56, 56, 256),
        "stage2": (2, 28, 28, 512),
        "stage3": (2, 14, 14, 1024),
        "stage4": (2, 7, 7, 2048),
        "maps": (2, 7, 7, 2048),
        "pre_logits": (2, 2048),
    }


def test_vit_intermediates():
    _, (_, intermediates) = shapes_of("vit_tiny_patch16_224")
    expected = {f"block{index:02d}": (2, 197, 192) for index in range(12)}
    expected |= {"tokens": (2, 197, 192), "maps": (2, 14, 14, 192), "pre_logits": (2, 192)}
    assert {name: leaf.shape for name, leaf in intermediates.items()} == expected


def test_fresh_vit_is_undecided():
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    model = create_model("vit_nano_patch8_48", num_classes=2, dtype="float32")
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    logits, _ = model.apply(variables, images, train=False)
    np.testing.assert_array_equal(logits, np.zeros((2, 2)))


@pytest.mark.parametrize("width", [8, 96, 14])
def test_sincos_positions_are_sines_and_cosines_of_column_then_row(width):
    table = np.asarray(sincos_positions(2, 3, width))
    assert table.shape == (6, width)
    quarter = width // 4
    for row in range(2):
        for column in range(3):
            values = table[row * 3 + column]
            for index in range(quarter):
                frequency = 10_000 ** (-index / (quarter - 1))
                expected = [
                    math.sin(column * frequency),
                    math.cos(column * frequency),
                    math.sin(row * frequency),
                    math.cos(row * frequency),
                ]
                found = [values[part * quarter + index] for part in range(4)]
                np.testing.assert_allclose(found, expected, atol=1e-6)
            assert not values[4 * quarter :].any()


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_position_embedding_starts_at_sincos_with_zeros_for_the_class_token(pool):
    model = VisionTransformer(
        num_classes=2,
        patch_size=4,
        width=8,
        depth=1,
        heads=2,
        statistics=UNIT,
        global_pool=pool,
    )
    images = jnp.zeros((1, 8, 12, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    embedding = np.asarray(variables["params"]["pos_embed"][0])
    if pool == "token":
        assert not embedding[0].any()
        embedding = embedding[1:]
    np.testing.assert_array_equal(embedding, sincos_positions(2, 3, 8))


def test_vision_transformers_alone_have_a_choice_of_pooling():
    create = partial(create_model, num_classes=2, dtype="float32")
    assert create("deit_tiny_patch16_224").global_pool == "token"
    assert create("deit_tiny_patch16_224", global_pool="avg").global_pool == "avg"
    assert create("vit_nano_patch8_48", global_pool="token").global_pool == "token"
    for name in ("resnet18", "deit_tiny_distilled_patch16_224", "RN50"):
        with pytest.raises(UserError, match=f"{name} has no choice of global_pool"):
            create(name, global_pool="avg")
    with pytest.raises(UserError, match=r"unknown global_pool 'agv'.*did you mean 'avg'"):
        create("deit_tiny_patch16_224", global_pool="agv")


def test_unknown_model_or_dtype_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        create_model("resnet_50", num_classes=2, dtype="float32")
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        create_model("resnet50", num_classes=2, dtype="bf16")


def test_image_size_must_be_a_multiple_of_the_patch():
    check_image_size("vit_tiny_patch16_224", 96)
    check_image_size("resnet50", 97)
    with pytest.raises(UserError, match=r"config\.data\.image_size=100 .* patch size 16"):
        check_image_size("vit_tiny_patch16_224", 100)


def test_smallest_image_of_a_densenet_leaves_a_pixel_of_the_last_map():
    check_image_size("densenet121", 29)
    _, (_, intermediates) = shapes_of("densenet121", size=29)
    assert intermediates["stage4"].shape == (2, 1, 1, 1024)
    _, (_, intermediates) = shapes_of("densenet121", size=28)
    assert intermediates["stage4"].shape == (2, 0, 0, 1024)
    with pytest.raises(UserError, match="image_size=28 is too small for densenet121"):
        check_image_size("densenet121", 28)


def test_distilled_logits_are_the_mean_of_two_heads_on_tokens_of_their_own():
    model = VisionTransformer(
        num_classes=2, patch_size=4, width=8, depth=1, heads=2, statistics=UNIT, distilled=True
    )
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    params = variables["params"]
    assert params["pos_embed"].shape == (1, 2 + 4, 8)
    params["dist_token"] += 1.0
    for number, head in enumerate(("head", "head_dist")):
        params[head]["kernel"] = jax.random.normal(jax.random.key(number), (8, 2))
    for train in (False, True):
        logits, intermediates = model.apply(variables, images, train=train)
        tokens = np.asarray(intermediates["tokens"])
        first = tokens[:, 0] @ np.asarray(params["head"]["kernel"])
        second = tokens[:, 1] @ np.asarray(params["head_dist"]["kernel"])
        assert abs(first - second).max() > 0.1
        np.testing.assert_allclose(logits, (first + second) / 2, rtol=1e-5, atol=1e-6)

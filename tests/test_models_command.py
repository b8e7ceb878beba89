"""`python -m corm_jax.models list`, and the costs that it prints."""

import flax.linen as nn
import jax
import pytest
from command import run

from corm_jax.models import create_model, default_image_size
from corm_jax.models.cost import forward_cost


class Toy(nn.Module):
    """A grouped convolution and a matrix product below a rectifier's own program."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Conv(6, (3, 3), strides=2, padding=1, feature_group_count=3)(images)
        return nn.Dense(5)(jax.jit(nn.relu)(x).reshape(1, -1))


def test_multiply_adds_are_those_of_convolutions_and_products() -> None:
    cost = forward_cost(Toy(), 8)
    # 4x4 places of 6 outputs from 3x3 pixels of the one input of their group.
    assert cost.multiply_adds == 4 * 4 * 6 * (3 * 3 * 1) + (4 * 4 * 6) * 5
    assert cost.parameters == (3 * 3 * 1 * 6 + 6) + (4 * 4 * 6 * 5 + 5)


@pytest.mark.parametrize(
    ("name", "gmacs"),  # as timm's tables of results give them
    [("resnet50", 4.11), ("vit_tiny_patch16_224", 1.26), ("densenet121", 2.87)],
)
def test_known_costs(name: str, gmacs: float) -> None:
    model = create_model(name, num_classes=1000, dtype="float32")
    assert forward_cost(model, 224).multiply_adds / 1e9 == pytest.approx(gmacs, rel=0.015)


def test_image_size_is_in_the_name_or_224() -> None:
    assert default_image_size("vit_nano_patch8_48") == 48
    assert default_image_size("wide_resnet50_2") == 224


def test_list_prints_parameters_and_flops() -> None:
    code, output, errors = run(["list", "--match=*resnet50*"], module="corm_jax.models")
    assert code == 0, errors
    header, *rows = [line.split() for line in output.splitlines()]
    assert header == ["model", "image", "size", "parameters", "(M)", "GFLOPs"]
    assert rows == [
        ["resnet50", "224", "25.56", "8.18"],
        ["wide_resnet50_2", "224", "68.88", "22.80"],
    ]


def test_what_list_cannot_do_is_said_in_a_line() -> None:
    code, _, errors = run(["list", "--match=alexnet*"], module="corm_jax.models")
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith("error: no model's name matches 'alexnet*'; valid: ")
    code, _, errors = run(["lst"], module="corm_jax.models")
    assert code == 2
    assert "invalid choice: 'lst' (choose from" in errors

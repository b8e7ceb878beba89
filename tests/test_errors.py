"""Look-ups name the nearest match."""

import pytest

from corm_jax.errors import UserError, lookup, nearest

TABLE = {"resnet50": 50, "resnet18": 18, "vit_tiny": 5}


def test_lookup_returns_the_value() -> None:
    assert lookup(TABLE, "resnet18", "model") == 18


def test_lookup_of_a_misspelled_name_lists_the_valid_ones_and_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        lookup(TABLE, "resnet5", "model")
    assert str(caught.value) == (
        "unknown model 'resnet5' (did you mean 'resnet50'?); valid: resnet18, resnet50, vit_tiny"
    )


def test_lookup_of_something_else_entirely_suggests_nothing() -> None:
    with pytest.raises(UserError, match=r"^unknown model 'xyz'; valid: resnet18"):
        lookup(TABLE, "xyz", "model")


def test_nearest_of_no_names_is_empty() -> None:
    assert nearest("a", []) == ""

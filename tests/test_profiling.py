from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from corm_jax.errors import UserError
from corm_jax.profiling import Profile, parse_steps


@pytest.mark.parametrize("text", ["10", "0:5", "7:6", "a:b", "1:2:3", "-1:3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"config\.profile\.steps=.* such as 10:15"):
        parse_steps(text)


def test_range_of_steps() -> None:
    assert parse_steps("") is None
    assert parse_steps("10:15") == (10, 15)
    assert parse_steps("3:3") == (3, 3)


def traces(directory: Path) -> list[Path]:
    return list(directory.rglob("*.xplane.pb"))


@pytest.mark.parametrize(("first", "last"), [(1, 3), (2, 5)])  # in the middle, and resumed there
def test_trace_is_written_when_the_range_is_over(first: int, last: int, tmp_path: Path) -> None:
    profile, state = Profile(tmp_path, (first, 3)), jnp.zeros(())
    add = jax.jit(lambda x: x + 1)
    for step in range(2, last + 1):
        profile.before(step, state)
        state = add(state)
    assert bool(traces(tmp_path)) == (last > 3)
    profile.close()
    assert len(traces(tmp_path)) == 1


def test_no_request_writes_nothing(tmp_path: Path) -> None:
    profile = Profile(tmp_path / "profile", None)
    profile.before(1, None)
    profile.close()
    assert not (tmp_path / "profile").exists()

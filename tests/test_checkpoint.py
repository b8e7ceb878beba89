import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stepping import make_config, make_vit

from corm_jax.checkpoint import Checkpoints, fingerprint
from corm_jax.errors import UserError
from corm_jax.sharding import create_mesh
from corm_jax.state import TrainState, abstract_state


def tree(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.normal(size=(64, 48)), jnp.float32),
        "step": jnp.asarray(seed, jnp.int32),
    }


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(create_mesh(-1, 1), PartitionSpec())
    ),
    tree(0),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with checkpoints of steps 10 and 20."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(workdir / "checkpoints", best="core")
    for step in (10, 20):
        checkpoints.save(step, tree(step), {"position": step * 8}, None)
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def restore(workdir: Path) -> tuple[int, dict[str, Any]]:
    """Returns (step, run) of what is restored; the arrays must be that step's."""
    checkpoints = Checkpoints(workdir / "checkpoints", best="core")
    state, record = checkpoints.restore(ABSTRACT)
    checkpoints.close()
    step = int(state["step"])
    np.testing.assert_array_equal(state["kernel"], tree(step)["kernel"])
    return step, record


def largest(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(directory: Path) -> None:
    path = largest(directory)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(directory: Path) -> None:
    path = largest(directory)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete_largest(directory: Path) -> None:
    largest(directory).unlink()


def empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def replace_record(directory: Path) -> None:
    (directory / "run" / "metadata").write_text("not json")


def delete_record(directory: Path) -> None:
    shutil.rmtree(directory / "run")


def replace_metadata(directory: Path) -> None:
    (directory / "_CHECKPOINT_METADATA").write_bytes(b"\xff\x00")
    (directory / "state" / "_METADATA").write_bytes(b"\xff\x00")


def swap_state(directory: Path) -> None:
    """Whole and readable, but another step's."""
    shutil.rmtree(directory / "state")
    shutil.copytree(directory.parent / "10" / "state", directory / "state")


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Ends the reads that Orbax abandons when one fails here, not in a later test."""
    yield
    gc.collect()


# Their complaints are no fault of ours; `corm_jax.terminal` hides them from users.
abandons_reads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

DAMAGES = [
    truncate,
    flip_a_bit,
    delete_largest,
    empty,
    replace_record,
    delete_record,
    replace_metadata,
    swap_state,
]


def test_newest_is_restored_with_its_record(workdir: Path) -> None:
    step, record = restore(workdir)
    assert step == 20
    assert record["position"] == 160


@abandons_reads
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_and_says_so(
    damage: Callable[[Path], None], workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(workdir / "checkpoints" / "20")
    assert restore(workdir)[0] == 10
    message = "\n".join(r.message for r in caplog.records if r.name.startswith("corm_jax"))
    assert f"{workdir}/checkpoints/20 is damaged" in message
    assert f"falling back to checkpoint {workdir}/checkpoints/10" in message
    assert (workdir / "corrupt_checkpoints" / "20").is_dir()
    assert [p.name for p in (workdir / "checkpoints").iterdir()] == ["10"]


@abandons_reads
def test_step_of_a_damaged_checkpoint_is_saved_again(workdir: Path) -> None:
    truncate(workdir / "checkpoints" / "20")
    checkpoints = Checkpoints(workdir / "checkpoints", best="core")
    checkpoints.restore(ABSTRACT)
    checkpoints.save(20, tree(20), {"position": 160}, None)
    checkpoints.close()
    assert restore(workdir)[0] == 20


@abandons_reads
def test_all_damaged_is_an_error_that_changes_nothing(workdir: Path) -> None:
    for step in ("10", "20"):
        flip_a_bit(workdir / "checkpoints" / step)
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint in .*/checkpoints can be read") as info:
            restore(workdir)
        assert "\n" not in str(info.value)
        assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["10", "20"]


def test_nothing_saved_restores_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", best="core")
    assert checkpoints.restore(ABSTRACT) is None
    checkpoints.close()


def test_latest_two_and_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, best="core")
    for step, core in ((1, 0.2), (2, 0.9), (3, 0.4), (4, None), (5, 0.5), (6, None)):
        checkpoints.save(step, tree(step), {}, None if core is None else {"core": core})
    checkpoints.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [2, 5, 6]


def test_a_checkpoint_whose_metric_was_not_measured_is_never_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, best="core")
    for step, metrics in enumerate([{"clean": 0.5}, {"core": 0.1}, *3 * [{"clean": 0.9}]]):
        checkpoints.save(step, tree(step), {}, metrics)
    checkpoints.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [1, 3, 4]


def test_best_survives_a_new_start(tmp_path: Path) -> None:
    for steps in ((1, 2), (3, 4)):
        checkpoints = Checkpoints(tmp_path, best="core")
        for step in steps:
            checkpoints.save(step, tree(step), {}, {"core": 1 / step})
        checkpoints.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [1, 3, 4]


def test_fingerprint_sees_every_single_bit_and_two_signs() -> None:
    values = np.random.default_rng(0).normal(size=5).astype(np.float32)
    prints = {int(fingerprint({"w": jnp.asarray(values)}))}
    for index in range(len(values)):
        for bit in range(32):
            changed = values.copy()
            changed.view(np.uint32)[index] ^= np.uint32(1 << bit)
            prints.add(int(fingerprint({"w": jnp.asarray(changed)})))
    prints.add(int(fingerprint({"w": jnp.asarray(values * [-1, -1, 1, 1, 1], jnp.float32)})))
    assert len(prints) == 1 + 5 * 32 + 1


def test_fingerprint_sees_order_and_is_the_same_on_any_number_of_devices() -> None:
    values = np.arange(16, dtype=np.float32)
    expected = int(fingerprint({"w": jnp.asarray(values)}))
    assert int(fingerprint({"w": jnp.asarray(values[::-1].copy())})) != expected
    sharded = jax.device_put(values, NamedSharding(create_mesh(-1, 1), PartitionSpec("data")))
    assert int(fingerprint({"w": sharded})) == expected


@pytest.mark.parametrize("mesh", [(1, 1, 1), (4, 2, 8), (8, 1, 8)])
def test_a_checkpoint_of_one_topology_restores_on_another(
    sharded: tuple[Path, dict], mesh: tuple[int, int, int]
) -> None:
    directory, expected = sharded
    *shape, devices = mesh
    abstract = abstract_of(create_mesh(*shape, jax.devices()[:devices]))
    checkpoints = Checkpoints(directory, best="core")
    state, _ = checkpoints.restore(abstract)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    jax.tree.map(lambda leaf, place: assert_placed(leaf, place.sharding), state, abstract)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint of a train state over fsdp=8, with the state's values."""
    rng, directory = np.random.default_rng(0), tmp_path_factory.mktemp("sharded") / "checkpoints"
    abstract = abstract_of(create_mesh(1, 8))
    values = jax.tree.map(
        lambda leaf: rng.integers(0, 1000, leaf.shape).astype(leaf.dtype), abstract
    )
    state = jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), values, abstract)
    assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    checkpoints = Checkpoints(directory, best="core")
    checkpoints.save(1, state, {"position": 8}, None)
    checkpoints.close()
    return directory, values


def abstract_of(mesh: Mesh) -> TrainState:
    return abstract_state(make_config("erm"), make_vit(width=128), mesh)


def assert_placed(leaf: jax.Array, sharding: NamedSharding) -> None:
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

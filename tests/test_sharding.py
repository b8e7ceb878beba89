"""The mesh and the placement of arrays."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from corm_jax.errors import UserError
from corm_jax.sharding import create_mesh, gather, host_shard, put_batch, state_shardings


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (8, 1, (8, 1)), (-1, 2, (4, 2)), (4, 2, (4, 2)), (-1, 8, (1, 8))],
)
def test_mesh_covers_all_devices(data, fsdp, shape):
    mesh = create_mesh(data, fsdp)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("data", "fsdp")
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (-1, 3, r"config\.mesh\.fsdp=3 does not divide the number of devices, 8"),
        (-1, 0, r"config\.mesh\.fsdp=0"),
        (3, 2, r"config\.mesh\.data=3 x config\.mesh\.fsdp=2 .* set config\.mesh\.data=4, or -1"),
        (0, 1, r"config\.mesh\.data=0"),
    ],
)
def test_mesh_that_does_not_fit_the_devices_is_refused(data, fsdp, message):
    with pytest.raises(UserError, match=message):
        create_mesh(data, fsdp)


def test_largest_dimension_that_divides_is_sharded_and_small_arrays_are_not():
    shapes = {
        "largest": (256, 1024),
        "largest_first": (2048, 256),
        "largest_does_not_divide": (256, 1023),
        "convolution": (3, 3, 128, 256),
        "nothing_divides": (255, 1023),
        "small": (128, 128),
        "scalar": (),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    shardings = state_shardings(tree, create_mesh(4, 2))
    assert {name: sharding.spec for name, sharding in shardings.items()} == {
        "largest": PartitionSpec(None, "fsdp"),
        "largest_first": PartitionSpec("fsdp", None),
        "largest_does_not_divide": PartitionSpec("fsdp", None),
        "convolution": PartitionSpec(None, None, None, "fsdp"),
        "nothing_divides": PartitionSpec(),
        "small": PartitionSpec(),
        "scalar": PartitionSpec(),
    }


def test_without_fsdp_everything_is_replicated():
    tree = {"kernel": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    assert state_shardings(tree, create_mesh(8, 1))["kernel"].spec == PartitionSpec()


def test_batch_is_split_over_all_devices_of_both_axes():
    values = np.arange(16, dtype=np.int32).reshape(16, 1)
    placed = put_batch({"label": values}, create_mesh(4, 2))["label"]
    np.testing.assert_array_equal(placed, values)
    parts = [np.asarray(shard.data).ravel().tolist() for shard in placed.addressable_shards]
    assert sorted(parts) == [[2 * i, 2 * i + 1] for i in range(8)]


def test_gathered_parameters_are_whole_and_their_gradients_sharded():
    mesh = create_mesh(4, 2)
    kernel = np.random.default_rng(0).normal(size=(512, 256)).astype(np.float32)
    shardings = state_shardings({"kernel": jax.ShapeDtypeStruct(kernel.shape, jnp.float32)}, mesh)
    params = jax.device_put({"kernel": kernel}, shardings)
    whole = jax.jit(lambda params: gather(params, shardings))(params)["kernel"]
    assert whole.is_fully_replicated
    np.testing.assert_array_equal(whole, kernel)

    def loss(params):
        return jnp.sin(gather(params, shardings)["kernel"]).sum()

    gradient = jax.jit(jax.grad(loss))(params)["kernel"]
    assert gradient.sharding.is_equivalent_to(shardings["kernel"], 2)
    np.testing.assert_allclose(gradient, np.cos(kernel), rtol=1e-5, atol=1e-6)
    # Of a derivative forward, as terms that linearise take it.
    _, slope = jax.jvp(loss, (params,), (params,))
    assert float(slope) == pytest.approx(float((np.cos(kernel) * kernel).sum()), rel=1e-3)


def device(index, process):
    return SimpleNamespace(id=index, process_index=process)


@pytest.mark.parametrize(
    ("processes", "shard"),
    [([0, 0], (0, 1)), ([0, 0, 1, 1], (0, 2)), ([2, 2, 0, 0, 4, 4], (0, 3))],
)
def test_a_process_loads_its_slice_of_the_batch(processes, shard):
    mesh = SimpleNamespace(devices=np.array([device(*pair) for pair in enumerate(processes)]))
    assert host_shard(mesh) == shard


def test_processes_of_different_sizes_are_refused():
    devices = np.array([device(0, 0), device(1, 0), device(2, 1)])
    with pytest.raises(UserError, match=r"different numbers of devices \(\{0: 2, 1: 1\}\)"):
        host_shard(SimpleNamespace(devices=devices))

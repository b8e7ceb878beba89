"""The device mesh and where arrays live on it."""

import collections
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import linear_call
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from corm_jax.errors import UserError

AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**16  # smaller parameters are replicated: sharding them saves nothing


def create_mesh(data: int, fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Creates the mesh (data, fsdp).

    Args:
      data: size of the data-parallel axis, -1 for all devices that `fsdp` leaves.
      fsdp: size of the axis that parameters are sharded over as well as the batch.
      devices: that the mesh covers, all by default.

    Raises:
      UserError: if the axes do not cover the devices; names the config's keys.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        raise UserError(f"config.mesh.fsdp={fsdp} does not divide the number of devices, {count}")
    rest = count // fsdp
    if data not in (-1, rest):
        raise UserError(
            f"config.mesh.data={data} x config.mesh.fsdp={fsdp} does not cover the {count} "
            f"devices; set config.mesh.data={rest}, or -1 for whatever is left"
        )
    axis_types = (AxisType.Auto,) * len(AXES)
    mesh = jax.make_mesh((rest, fsdp), AXES, axis_types=axis_types, devices=devices)
    processes = [device.process_index for device in mesh.devices.flat]
    if processes != sorted(processes):
        # What jax finds nearest on a torus may split a process's devices, but its part of a batch
        # is one slice, so that the batch is the same whatever the number of processes.
        ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(ordered).reshape(rest, fsdp), AXES, axis_types=axis_types)
    return mesh


def host_shard(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): which of the equal slices of a batch this process loads.

    Raises:
      UserError: if the mesh has different numbers of devices in its processes.
    """
    processes = [device.process_index for device in mesh.devices.flat]
    numbers = collections.Counter(processes)
    if len(set(numbers.values())) > 1:
        raise UserError(
            f"the processes have different numbers of devices ({dict(sorted(numbers.items()))}); "
            "give all of them as many"
        )
    return sorted(numbers).index(jax.process_index()), len(numbers)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: examples over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def microbatch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of [microbatches, examples, ..]: each microbatch over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """Returns shardings for a train state: one rule for parameters, averages and moments.

    The largest dimension that `fsdp` divides is sharded over it; arrays of fewer than
    `MIN_SHARDED_SIZE` elements are replicated.

    Args:
      abstract_state: tree of `jax.ShapeDtypeStruct`.
      mesh: from `create_mesh`.
    """
    size = mesh.shape["fsdp"]

    def rule(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        candidates = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or leaf.size < MIN_SHARDED_SIZE or not candidates:
            return replicated(mesh)
        axis = max(candidates, key=lambda candidate: leaf.shape[candidate])
        spec = [None] * leaf.ndim
        spec[axis] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, abstract_state)


def gather(params: Any, shardings: Any) -> Any:
    """Returns parameters with all of each on every device, for the time of a forward pass.

    What is computed from them is then sharded as the batch is. Left to itself, the compiler shards
    activations as well by what the parameters are sharded over, and moves those of the whole batch
    between the devices. Gradients take the way back: they are summed into their shards.

    Args:
      params: arrays.
      shardings: theirs, from `state_shardings`.
    """

    def whole(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_replicated:
            return leaf
        everywhere, constrain = replicated(sharding.mesh), jax.lax.with_sharding_constraint
        # The transpose of a constraint would constrain the gradient to be whole as well.
        return linear_call(
            lambda _, leaf: constrain(leaf, everywhere),
            lambda _, gradient: constrain(gradient, sharding),
            *((), leaf),
        )

    return jax.tree.map(whole, params, shardings)


def put_batch(batch: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Places this process's part of a batch on its devices as part of the global batch.

    Args:
      batch: numpy arrays whose first axis is the examples', in a tree.
      mesh: from `create_mesh`.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda value: jax.make_array_from_process_local_data(sharding, value), batch
    )

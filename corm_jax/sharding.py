"""The device mesh and where arrays live on it."""

from collections.abc import Sequence
from typing import Any

import jax
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
    return jax.make_mesh((rest, fsdp), AXES, axis_types=axis_types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: examples over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


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

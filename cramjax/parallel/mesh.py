"""The device mesh of a run and how a batch lies on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from cramjax.errors import UserError

DATA = "data"
AXES = (DATA, "fsdp", "tensor")
# Both axes carry different sequences; fsdp shards the parameters as well.
BATCH_AXES = (DATA, "fsdp")


def make_mesh(data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device]) -> Mesh:
    """A data × fsdp × tensor mesh over all `devices`; one size may be -1 ("the rest").

    Raises:
        UserError: if the sizes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    if -1 in sizes:
        given = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, len(devices) // given)
    if math.prod(sizes) != len(devices):
        asked = " × ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise UserError(
            f"{asked} needs {math.prod(sizes)} devices, this process group has {len(devices)}; set one to -1"
        )
    # Rows of a batch go to processes in their order, which the order of a slice's chips need not be.
    devices = sorted(devices, key=lambda device: device.process_index)
    # Auto axis types: XLA propagates shardings, so the model code stays free of them (jax 0.10 would default to Explicit).
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a microbatch are cut."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh, rank: int, row_axis: int) -> NamedSharding:
    """Sharding of an array of `rank` axes whose axis `row_axis` counts sequences."""
    spec = [None] * rank
    spec[row_axis] = BATCH_AXES
    return NamedSharding(mesh, PartitionSpec(*spec))


def is_of_copies(mesh: Mesh) -> bool:
    """Whether every device has the whole network, and only sequences are divided among them."""
    return mesh.size == mesh.shape[DATA]


def rows_of_sharded(mesh: Mesh) -> NamedSharding | None:
    """The sharding of sequences where the network is sharded as well; None where every device has all of it."""
    return None if is_of_copies(mesh) else NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place(value: np.ndarray | np.generic, sharding: Sharding) -> jax.Array:
    """`value`, the same in every process, as an array of all devices; unlike `device_put` it does not have the processes compare."""
    if jax.process_count() == 1:
        return jax.device_put(value, sharding)
    with jax.transfer_guard_host_to_device(
        "allow"
    ):  # it is meant, which this function cannot say otherwise
        return jax.make_array_from_callback(
            np.shape(value), sharding, lambda index: np.asarray(value)[index]
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a scalar or of any array every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())

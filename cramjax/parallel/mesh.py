"""The device mesh of a run, and the shardings of its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from cramjax.errors import UserError
from cramjax.parallel import processes

DATA = "data"
AXES = (DATA, "fsdp", "tensor")
# Both axes carry different sequences; fsdp shards the parameters as well.
BATCH_AXES = (DATA, "fsdp")


def make_mesh(data: int, fsdp: int, tensor: int, devices: Sequence[Any]) -> Mesh:
    """Returns a data × fsdp × tensor mesh over all JAX `devices`; one size may be -1 ("the rest").

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
            f"{asked} needs {math.prod(sizes)} devices, "
            f"this process group has {len(devices)}; set one to -1"
        )

    # Rows of a batch go to the processes in order; the chips of a slice may have another order.
    devices = sorted(devices, key=lambda device: device.process_index)
    # With Auto axes XLA propagates shardings, so models need none. jax 0.10 defaults to Explicit.
    axis_types = (AxisType.Auto,) * len(AXES)
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=axis_types)


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts into which the rows of a microbatch are divided."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh, rank: int, row_axis: int) -> NamedSharding:
    """Returns the sharding of an array of `rank` axes whose axis `row_axis` counts sequences."""
    spec: list[tuple[str, ...] | None] = [None] * rank
    spec[row_axis] = BATCH_AXES
    return NamedSharding(mesh, PartitionSpec(*spec))


def is_of_copies(mesh: Mesh) -> bool:
    """Returns whether each device holds the whole network and only sequences are divided."""
    return mesh.size == mesh.shape[DATA]


def rows_of_sharded(mesh: Mesh) -> NamedSharding | None:
    """Returns the sharding of sequences if the network is sharded as well.

    None if every device holds the whole network.
    """
    return None if is_of_copies(mesh) else NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place(value: np.ndarray | np.generic, sharding: Sharding) -> jax.Array:
    """Returns `value`, the same in every process, as an array of all devices.

    Unlike `device_put` it does not make the processes compare their values.
    """
    if processes.count() == 1:
        return jax.device_put(value, sharding)
    # The loop forbids transfers. This one is intended, and its function has no other way to say so.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(
            np.shape(value), sharding, lambda index: np.asarray(value)[index]
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())

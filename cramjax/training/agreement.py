"""One clock and one will for all processes of a run: process 0's time, and a stop that any of them was asked for.

What a run does follows from its counts, its clock and its signals. Counts are the same in every process; the other two are made so
here, by a collective of two numbers that is sent off with each step and read with the metrics of the step before: nothing waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cramjax.stop import Stop, StopSignal


class Agreement(Stop):
    """In place of a `StopSignal` and of a time source where there are several processes; both are a step late."""

    def __init__(self, stop: StopSignal, now: Callable[[], float] = time.monotonic):
        """`stop`: of this process; `now`: its clock, in seconds."""
        self._own, self._now, self._started = stop, now, now()
        everywhere = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.asarray(everywhere).reshape(jax.process_count(), -1), ("process", "device"))
        self._sharding = NamedSharding(mesh, PartitionSpec("process"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._combine = jax.jit(
            lambda said: jnp.stack([said[0, 0], jnp.max(said[:, 1])]), out_shardings=whole
        )
        self._pending: jax.Array | None = None
        self._milliseconds = 0

    def advance(self) -> None:
        """Say what this process knows and take over what all said a call ago; every process calls it as often."""
        milliseconds = round(1000 * (self._now() - self._started))
        said = np.asarray([[milliseconds, self._own.signum or 0]], np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            placed = jax.make_array_from_process_local_data(self._sharding, said)
        before, self._pending = self._pending, self._combine(placed)
        if before is not None:
            self._milliseconds, signum = (int(value) for value in jax.device_get(before))
            self.signum = signum or None

    def now(self) -> float:
        """Seconds of process 0's clock; stands still between two calls of `advance`."""
        return self._milliseconds / 1000

    def at_once(self) -> AbstractContextManager[None]:
        """As of `StopSignal`."""
        return self._own.at_once()

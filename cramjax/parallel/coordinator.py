"""One clock and one request to stop for all processes of a run.

A run's decisions follow from its counts, its clock and its signals. Counts are the same in every
process. With several processes the clock is process 0's, and a signal to any of them stops all.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cramjax.parallel import processes
from cramjax.stop import Stop


class Coordinator(Protocol):
    """The clock and the request to stop that a training loop follows."""

    @property
    def requested(self) -> bool:
        """True if the run is to stop after the current step."""
        ...

    @property
    def reason(self) -> str | None:
        """The name of the signal that stops the run ("sigterm"), or None."""
        ...

    def now(self) -> float:
        """Returns the clock's seconds, without pauses."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Returns a context whose seconds do not count; all processes enter it at one step."""
        ...

    def advance(self) -> None:
        """Exchange clock and signals with the other processes; called once a step in each."""
        ...


def coordinate(stop: Stop) -> Coordinator:
    """Returns the coordinator for this run's number of processes; `stop` is this process's."""
    return OneProcess(stop) if processes.count() == 1 else SeveralProcesses(stop)


class Stopwatch:
    """The seconds of this process, without its pauses."""

    def __init__(self, now: Callable[[], float]):
        """`now` returns seconds."""
        self._now = now
        self._left_out_s = 0.0
        self._paused_at: float | None = None

    def now(self) -> float:
        """Returns the seconds; they stand still in a pause."""
        reading = self._now() if self._paused_at is None else self._paused_at
        return reading - self._left_out_s

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the seconds inside."""
        self._paused_at = self._now()
        try:
            yield
        finally:
            self._left_out_s += self._now() - self._paused_at
            self._paused_at = None


class OneProcess:
    """The coordinator of a process without others: its own clock and signals, at once."""

    def __init__(self, stop: Stop, now: Callable[[], float] = time.monotonic):
        """`stop` and `now` are the signals and the clock (seconds) of this process."""
        self._stop = stop
        self._stopwatch = Stopwatch(now)

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self._stop.requested

    @property
    def reason(self) -> str | None:
        """The signal's name in lower case, or None."""
        return self._stop.reason

    def now(self) -> float:
        """Returns the seconds of a monotonic clock, without pauses."""
        return self._stopwatch.now()

    def paused(self) -> AbstractContextManager[None]:
        """Returns a context whose seconds do not count."""
        return self._stopwatch.paused()

    def advance(self) -> None:
        """Do nothing: there is no other process."""


class SeveralProcesses(Stop):
    """The coordinator of several processes; clock and signals are one step late.

    A collective of three numbers is dispatched with each step and read one step later, together
    with the metrics of that step. So no process waits for it.
    """

    def __init__(self, stop: Stop, now: Callable[[], float] = time.monotonic):
        """`stop` and `now` are the signals and the clock (seconds) of this process."""
        self._stop = stop
        self._stopwatch = Stopwatch(now)
        self._started = now()

        # One row of devices for each process, so that every process places its own numbers.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        grid = np.asarray(devices).reshape(processes.count(), -1)
        mesh = Mesh(grid, ("process", "device"))
        self._sharding = NamedSharding(mesh, PartitionSpec("process"))
        replicated = NamedSharding(mesh, PartitionSpec())
        self._combine = jax.jit(_combine, out_shardings=replicated)

        self._pending: jax.Array | None = None
        self._agreed_s = 0.0

    def now(self) -> float:
        """Returns the seconds of process 0's clock; they change in `advance` alone."""
        return self._agreed_s

    def paused(self) -> AbstractContextManager[None]:
        """Returns a context whose seconds do not count."""
        return self._stopwatch.paused()

    def advance(self) -> None:
        """Send this process's clock and signal; take over what all sent one call ago."""
        # Milliseconds alone would overflow after 24 days.
        seconds, milliseconds = divmod(round(1000 * (self._stopwatch.now() - self._started)), 1000)
        numbers = np.asarray([[seconds, milliseconds, self._stop.signum or 0]], np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            placed = jax.make_array_from_process_local_data(self._sharding, numbers)

        before = self._pending
        self._pending = self._combine(placed)
        if before is not None:
            seconds, milliseconds, signum = (int(value) for value in jax.device_get(before))
            self._agreed_s = seconds + milliseconds / 1000
            self.signum = signal.Signals(signum) if signum else None


def _combine(numbers: jax.Array) -> jax.Array:
    """Returns int32 [3]: process 0's seconds and milliseconds, any process's signal or 0.

    `numbers` is int32 [processes, 3]: seconds, milliseconds and signal of each process.
    """
    return jnp.stack([numbers[0, 0], numbers[0, 1], jnp.max(numbers[:, 2])])

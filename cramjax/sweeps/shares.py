"""Shares of a machine, for several runs at a time: each gets cores, and GPUs, of its own."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import TypeVar

from cramjax.errors import UserError

T = TypeVar("T")

_DEVICES = pathlib.Path("/dev")


@dataclasses.dataclass(frozen=True)
class Share:
    """A part of the machine.

    Attributes:
        cores: numbers of the cores, or None where the system does not give cores to processes.
        gpus: names of the GPUs, as CUDA_VISIBLE_DEVICES takes them; None on a machine without.
    """

    cores: tuple[int, ...] | None
    gpus: tuple[str, ...] | None

    def take(self) -> None:
        """From here on this thread, and the processes that it starts, run on these cores alone."""
        if self.cores is not None:
            # Of Linux: 0 stands for the calling thread.
            os.sched_setaffinity(0, self.cores)

    def command(self, command: Sequence[str]) -> list[str]:
        """Returns `command` so that it sees these GPUs alone."""
        if self.gpus is None:
            return list(command)
        return ["env", f"CUDA_VISIBLE_DEVICES={','.join(self.gpus)}", *command]


WHOLE = Share(cores=None, gpus=None)
"""The machine as it is."""


def divide(n_jobs: int) -> list[Share]:
    """Returns equal shares of this machine, one for each of `n_jobs` runs at a time.

    Raises:
        UserError: if there are not as many GPUs, or cores where nothing computes on a GPU.
    """
    if n_jobs == 1:
        return [WHOLE]
    gpus = _gpus()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if gpus:
        what, there_are = "GPUs", len(gpus)
    else:
        what, there_are = "cores", len(cores) if cores else os.cpu_count() or 1
    if n_jobs > there_are:
        raise UserError(
            f"--jobs {n_jobs}: {what} of this machine: {there_are}; give {there_are} at most"
        )

    shares = []
    for number in range(n_jobs):
        of_cores = None if cores is None else tuple(_part(cores, number, n_jobs))
        of_gpus = tuple(_part(gpus, number, n_jobs)) if gpus else None
        shares.append(Share(of_cores, of_gpus))
    return shares


def _part(things: Sequence[T], number: int, n_parts: int) -> Sequence[T]:
    """Returns part `number`, counted from 0, of `n_parts` equal ones; what is over stays unused.

    More parts than things have one each, in turn.
    """
    size = len(things) // n_parts
    if size == 0:
        return [things[number % len(things)]]
    return things[number * size : (number + 1) * size]


def _gpus() -> list[str]:
    """Returns the names of NVIDIA's GPUs that a run would see, without starting JAX."""
    has_plugin = importlib.util.find_spec("jax_plugins") is not None
    if not has_plugin or os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    numbers = [path.name.removeprefix("nvidia") for path in _DEVICES.glob("nvidia[0-9]*")]
    return sorted(numbers, key=int)

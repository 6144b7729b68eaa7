"""Several processes as one run: each joins the others where the environment says that there are others.

`jax.distributed` finds the rest by itself under SLURM (`srun`), Open MPI (`mpirun`) and on the hosts of a TPU slice; elsewhere three
variables say it: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib

import jax

from cramjax.errors import UserError

BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT_S = 20
"""After so long without a sign of life a process counts as dead, and JAX ends the others with a message."""


def join() -> None:
    """Become one process of several; nothing where this is the only one. To be called before the first device is asked for.

    Raises:
        UserError: where the variables are incomplete or no numbers, or the others do not answer.
    """
    if jax.distributed.is_initialized() or not (arguments := _arguments()):
        return
    # Signals are ours: the run agrees with all processes on the step after which it stops.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **(arguments if arguments is not True else {}),
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=3 * HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not find each other ({' '.join(str(error).split())})"
        ) from error


def part() -> None:
    """Leave the other processes in good order, where there are any: all of them have come to their end."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def _arguments() -> dict[str, object] | bool:
    """What `jax.distributed` has to be told; True: nothing, it finds out; empty: there are no others."""
    given = {name: os.environ[name] for name in BY_HAND if os.environ.get(name)}
    if "JAX_NUM_PROCESSES" in given or "JAX_PROCESS_ID" in given:
        if absent := [name for name in BY_HAND if name not in given]:
            raise UserError(
                f"{', '.join(given)}: set {' and '.join(absent)} as well, or none of them"
            )
        try:
            n, number = int(given["JAX_NUM_PROCESSES"]), int(given["JAX_PROCESS_ID"])
        except ValueError as error:
            raise UserError(
                "JAX_NUM_PROCESSES and JAX_PROCESS_ID: must be whole numbers"
            ) from error
        if not 0 <= number < n:
            raise UserError(
                f"JAX_PROCESS_ID={number}: must be from 0 to {n - 1}, JAX_NUM_PROCESSES is {n}"
            )
        return {
            "coordinator_address": given["JAX_COORDINATOR_ADDRESS"],
            "num_processes": n,
            "process_id": number,
        }
    return (
        _is_slurm_step() or int(os.environ.get("OMPI_COMM_WORLD_SIZE") or 1) > 1 or _is_tpu_host()
    )


def _is_slurm_step() -> bool:
    """Whether `srun` has started several of these; a batch script or a shell inside an allocation is one alone."""
    named = all(
        name in os.environ for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")
    )
    return (
        named
        and int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1) > 1
    )


def _is_tpu_host() -> bool:
    """Whether this is a host of a slice that has several."""
    several = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    devices = pathlib.Path("/dev")
    has_chips = any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))
    return several and has_chips and importlib.util.find_spec("libtpu") is not None


def count() -> int:
    """Returns the number of processes of this run."""
    return jax.process_count()


def index() -> int:
    """Returns the number of this process, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Returns whether this is process 0, the only one that writes files and prints."""
    return index() == 0

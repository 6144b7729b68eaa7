"""Several processes as one run: each joins the others if the environment names others.

`jax.distributed` finds the others by itself under SLURM (`srun`), under Open MPI (`mpirun`) and on
the hosts of a TPU slice. Elsewhere three variables name them: JAX_COORDINATOR_ADDRESS (host:port of
process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
from typing import Any

import jax

from cramjax.errors import UserError

BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT_S = 20
"""Seconds without a sign of life after which a process counts as dead.

JAX then ends the others with a message.
"""


def join() -> None:
    """Join the other processes of the run; do nothing if this is the only one.

    Call it before the first device is asked for.

    Raises:
        UserError: if the variables are incomplete or no numbers, or the others do not answer.
    """
    if jax.distributed.is_initialized():
        return
    others = arguments()
    if others is None:
        return

    # JAX must not handle signals: all processes agree on the step after which the run stops.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **others,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=3 * HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not find each other ({' '.join(str(error).split())})"
        ) from error


def part() -> None:
    """Leave the other processes, if any, in good order: all of them have come to their end."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def arguments() -> dict[str, Any] | None:
    """Returns the arguments for `jax.distributed`, or None if this is the only process.

    They are empty if `jax.distributed` finds the other processes by itself.
    """
    given = {name: os.environ[name] for name in BY_HAND if os.environ.get(name)}
    if "JAX_NUM_PROCESSES" in given or "JAX_PROCESS_ID" in given:
        return _given_by_hand(given)
    n_open_mpi = int(os.environ.get("OMPI_COMM_WORLD_SIZE") or 1)
    return {} if _is_slurm_step() or n_open_mpi > 1 or _is_tpu_host() else None


def _given_by_hand(given: dict[str, str]) -> dict[str, Any]:
    if absent := [name for name in BY_HAND if name not in given]:
        raise UserError(f"{', '.join(given)}: set {' and '.join(absent)} as well, or none of them")

    try:
        n_processes = int(given["JAX_NUM_PROCESSES"])
        number = int(given["JAX_PROCESS_ID"])
    except ValueError as error:
        raise UserError("JAX_NUM_PROCESSES and JAX_PROCESS_ID: must be whole numbers") from error
    if not 0 <= number < n_processes:
        raise UserError(
            f"JAX_PROCESS_ID={number}: must be from 0 to {n_processes - 1}, "
            f"JAX_NUM_PROCESSES is {n_processes}"
        )
    return {
        "coordinator_address": given["JAX_COORDINATOR_ADDRESS"],
        "num_processes": n_processes,
        "process_id": number,
    }


def _is_slurm_step() -> bool:
    """Returns whether `srun` has started several processes.

    A batch script or a shell inside an allocation is one process alone.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")
    n_tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1
    return all(name in os.environ for name in names) and int(n_tasks) > 1


def _is_tpu_host() -> bool:
    """Returns whether this is one host of a TPU slice with several."""
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

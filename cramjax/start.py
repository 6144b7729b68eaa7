"""What every command that computes does first: host memory, the card's memory, compiled programs,
other processes.

All of it has to be settled before JAX asks for the first device, after which the environment is no
longer read and threads are running. A command that only starts others, as a sweep, leaves it to
them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import sys

import jax

from cramjax.parallel import processes

GPU_FRACTION = 0.92
"""Of a GPU's memory that JAX takes at start; its own 0.75 would leave 3 GB of a 12 GB card unused.
"""
FEW_CORES = 4
"""Up to so many, the threads of this process do not wait for each other where they share one heap.
"""

# glibc's mallopt parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# What the driver of an accelerator puts there: NVIDIA's, Windows' for WSL, NVIDIA's for Jetson,
# AMD's, Google's.
_DEVICES = pathlib.Path("/dev")
_DEVICE_FILES = ("nvidiactl", "dxg", "nvhost-gpu", "kfd", "accel[0-9]*", "vfio/[0-9]*")


def start(*, together: bool = False) -> None:
    """Prepare this process for JAX; to be called before the first device is asked for, and harmless
    a second time.

    `together`: join the other processes, where the environment says that there are others.

    Raises:
        UserError: where those do not find each other.
    """
    if computes_on_cpu() and n_cores() <= FEW_CORES:
        keep_freed_memory()
    claim_memory()
    keep_programs()
    if together:
        processes.join()


def computes_on_cpu() -> bool:
    """Whether JAX is going to compute on the CPU, judged without starting it: by what is asked for,
    or else by what is there.
    """
    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] == "cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return True
    has_files = any(next(_DEVICES.glob(pattern), None) for pattern in _DEVICE_FILES)
    return not (has_files and _has_plugin())


def _has_plugin() -> bool:
    """Whether JAX is installed with anything but its CPU."""
    folders = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return folders or bool(importlib.metadata.entry_points(group="jax_plugins"))


def n_cores() -> int:
    """The cores this process may use, where the system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse freed blocks of any size; True where that worked. For XLA:CPU
    on few cores alone.

    XLA:CPU allocates a step's temporaries as one block of hundreds of MB and frees it afterwards.
    By default glibc maps such a block anew each time, and the kernel zeroes it page by page:
    155,000 page faults and almost half of the time of a step of a prototype of the 4 × 256 model
    (13,000 → 22,300 tokens/s without them, docs/benchmarks.md).

    All threads share one heap then, and queue for its lock: compiling for a GPU, the threads of two
    cores already switch 10 times as often, and lose up to a fifth.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    # One arena: the others are made of 64 MB heaps and map whatever is larger.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])


def claim_memory() -> None:
    """Let JAX take `GPU_FRACTION` of a GPU, where the user has set nothing else."""
    names = (
        "XLA_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_PREALLOCATE",
    )
    if not any(name in os.environ for name in names):
        os.environ[names[0]] = str(GPU_FRACTION)


def keep_programs() -> None:
    """Keep compiled programs between runs, unless the user has chosen a place (or none) by
    JAX_COMPILATION_CACHE_DIR.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "cramjax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

"""The first thing that every computing command does: memory, compiled programs, other processes.

All of it must be settled before JAX asks for the first device. After that the environment is no
longer read, and threads are running. A command that only starts others, as a sweep, leaves it to
them.
"""

from __future__ import annotations

import ctypes
import difflib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys

import jax

from cramjax.errors import UserError
from cramjax.parallel import processes

GPU_FRACTION = 0.92
"""The share of a GPU's memory that JAX takes at start.

JAX's own default, 0.75, leaves 3 GB of a 12 GB card unused.
"""
FEW_CORES = 4
"""The largest number of cores at which threads do not wait for each other for one shared heap."""

_FUSE_OUTPUTS = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"

# JAX's name of a platform → the extra of its package with the plugin.
_EXTRAS = {"cuda": "cuda12", "gpu": "cuda12", "tpu": "tpu"}

# glibc's mallopt parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# The files of an accelerator's driver: NVIDIA's, Windows' for WSL, NVIDIA's for Jetson, AMD's,
# Google's.
_DEVICES = pathlib.Path("/dev")
_DEVICE_FILES = ("nvidiactl", "dxg", "nvhost-gpu", "kfd", "accel[0-9]*", "vfio/[0-9]*")


def start(*, together: bool = False) -> None:
    """Prepare this process for JAX; a second call does no harm.

    Call it before the first device is asked for.

    Args:
        together: whether to join the other processes that the environment names, if any.

    Raises:
        UserError: if the processes do not find each other, or the platform that the user asks for
            is not there.
    """
    if computes_on_cpu():
        fuse_updates()
        if n_cores() <= FEW_CORES:
            keep_freed_memory()
    claim_memory()
    keep_programs()
    if together:
        processes.join()
    check_devices()


def computes_on_cpu() -> bool:
    """Returns whether JAX is going to compute on the CPU, without starting JAX.

    The platform that the user asks for decides, or else the devices and plugins of this machine.
    """
    # JAX defines its options at run time.
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms:
        return platforms.split(",")[0] == "cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return True
    has_files = any(next(_DEVICES.glob(pattern), None) for pattern in _DEVICE_FILES)
    return not (has_files and _has_plugin())


def _has_plugin() -> bool:
    """Returns whether JAX is installed with a plugin for another platform than the CPU."""
    folders = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return folders or bool(importlib.metadata.entry_points(group="jax_plugins"))


def n_cores() -> int:
    """Returns the cores this process may use, or all cores if the system cannot say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Let glibc's allocator reuse freed blocks of any size; returns whether that worked.

    This is for XLA:CPU on few cores alone. XLA:CPU allocates a step's temporaries as one block of
    hundreds of MB and frees it afterwards. By default glibc maps such a block anew each time, and
    the kernel zeroes it page by page. A step of a prototype of the 4 × 256 model had 155,000 page
    faults, almost half of its time; without them it went from 13,000 to 22,300 tokens/s
    (docs/benchmarks.md).

    All threads share one heap then, and queue for its lock. When compiling for a GPU, the threads
    of two cores already switch 10 times as often, and lose up to a fifth.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False

    # One arena: the others are made of 64 MB heaps and map whatever is larger.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
    # A list, so that every setting is made also after one that fails.
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])


def fuse_updates() -> None:
    """Let XLA:CPU compute in one loop what reads the same arrays, as a parameter and its moments.

    By default it has a loop for each. They read the gradient and the moments two or three times,
    and the moments are copied before they change. A user's own extra options stay as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FUSE_OUTPUTS}".strip()


def claim_memory() -> None:
    """Let JAX take `GPU_FRACTION` of a GPU's memory, unless the user has set another share."""
    names = (
        "XLA_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_PREALLOCATE",
    )
    if not any(name in os.environ for name in names):
        os.environ[names[0]] = str(GPU_FRACTION)


def keep_programs() -> None:
    """Keep compiled programs on disk between runs, if there is a folder for them.

    A user who sets JAX_COMPILATION_CACHE_DIR chooses another folder, or none if it is empty.
    """
    # A kernel of ours carries the lines of Python that traced it first. A start that times kernels
    # and one that need not would compile different programs, and find nothing in the cache.
    if "JAX_TRACEBACK_IN_LOCATIONS_LIMIT" not in os.environ:
        jax.config.update("jax_traceback_in_locations_limit", 0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (folder := _programs_folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _programs_folder() -> pathlib.Path | None:
    """Returns the user's folder for compiled programs, or None if nothing can be written there."""
    # A relative folder is no folder (XDG Base Directory Specification). A user of a container may
    # have no home at all; then "~" stays as it is.
    given = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = pathlib.Path(os.path.expanduser("~"))
    caches = given if given.is_absolute() else home / ".cache"
    folder = caches / "cramjax" / "xla"
    if not folder.is_absolute():
        return None

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def check_devices() -> None:
    """Ask for the first device; JAX starts now.

    Raises:
        UserError: if JAX finds none on the platforms that the user asks for.
    """
    try:
        jax.devices()
    # JAX asserts that it knows a platform, and CUDA's plugin is one that it knows and lacks.
    except (RuntimeError, AssertionError) as error:
        # JAX defines its options at run time.
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        reason = re.sub(r"\(set JAX_PLATFORMS=.*", "", " ".join(str(error).split())).strip()
        if not reason or "list of known backends" in reason:
            raise UserError(_lacking(asked)) from error
        named = f"JAX_PLATFORMS={asked}: " if asked else ""
        raise UserError(
            f"{named}JAX cannot start ({reason}); JAX_PLATFORMS=cpu computes on the CPU"
        ) from error


def _lacking(platforms: str) -> str:
    """Returns the sentence about a platform that this installation of JAX does not have."""
    first = platforms.split(",")[0]
    if first in _EXTRAS:
        return (
            f"JAX_PLATFORMS={platforms}: JAX is installed without a plugin for {first}; install it "
            f'(pip install "jax[{_EXTRAS[first]}]=={jax.__version__}"; cramjax doctor says more), '
            "or unset JAX_PLATFORMS"
        )
    near = difflib.get_close_matches(first, (*_EXTRAS, "cpu"), 1)
    hint = f"did you mean {near[0]}?" if near else "unset it, or take cpu, cuda or tpu"
    return f"JAX_PLATFORMS={platforms}: this installation of JAX knows no platform {first}; {hint}"

"""`cramjax doctor`: one page on this machine, for oneself and for a bug report.

It says which versions are installed, which devices JAX finds, and what is missing and how to get
it. Each finding stands alone: what cannot be asked is said, and the rest goes on.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from cramjax import __version__
from cramjax.config.cli import make_parser, run_command

EXAMPLE = """example:
  cramjax doctor > report.txt

It reads no file of yours and names no folder but the caches. Values of HF_TOKEN and the like are
not printed."""

# Packages whose versions decide how a run behaves; the second line is of NVIDIA.
_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers", "sentencepiece",
    "tensorflow", "tensorflow-cpu", "tensorflow-datasets", "transformers", "torch", "pyarrow",
    "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "libtpu",
)  # fmt: skip
# Variables of the environment that change a run. Only that others are set is said.
_VARIABLES = (
    "JAX_", "XLA_", "CUDA_", "LIBTPU_", "TPU_", "TF_CPP_", "TFDS_", "NVIDIA_", "SLURM_", "OMP_",
    "CRAMJAX_",
)  # fmt: skip
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
_LEAST_FREE_GB = 20
_LEAST_SHARED_MB = 64
_DRIVER_S = 20


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); returns the exit code."""
    parser = make_parser(
        "cramjax.doctor",
        "Say what is installed on this machine, what JAX finds, and what is missing.",
        EXAMPLE,
    )
    return run_command(_report, argv, parser)


def _report(_: argparse.Namespace) -> int:
    """Print the page."""
    sections: dict[str, Callable[[], Iterator[str]]] = {
        "versions": _versions,
        "machine": _machine,
        "environment": _environment,
        "driver": _driver,
        "devices": _devices,
    }
    for title, lines in sections.items():
        print(f"{title}:")
        for line in lines():
            print(f"  {line}")

    missing = list(_missing())
    print("missing:")
    for line in missing or ["nothing"]:
        print(f"  {line}")
    return 0


def _versions() -> Iterator[str]:
    yield f"cramjax {__version__}"
    yield f"python {platform.python_version()} ({platform.python_implementation()})"
    for name in _PACKAGES:
        if version := _version(name):
            yield f"{name} {version}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[str]:
    libc = " ".join(platform.libc_ver()).strip() or "no glibc"
    yield f"{platform.platform()}, {platform.machine()}, {libc}"
    yield f"{os.cpu_count()} cores"
    if memory := _memory_gb():
        yield f"{memory:.1f} GB of memory"
    for name, folder in (("this folder", pathlib.Path()), ("home", pathlib.Path.home())):
        usage = shutil.disk_usage(folder)
        yield f"{name}: {usage.free / 1e9:,.0f} of {usage.total / 1e9:,.0f} GB free"


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError, AttributeError):  # a system that cannot tell
        return None


def _devices() -> Iterator[str]:
    """Start JAX and say what it finds."""
    # A run may be using the card: this takes none of its memory before it is needed.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax

        for device in jax.devices():
            stats = device.memory_stats() or {}
            limit = stats.get("bytes_limit")
            size = ""
            if limit:
                size = f", {limit / 2**30:.1f} GiB for JAX"
            yield f"{device.id}: {device.device_kind} ({device.platform}){size}"
    except Exception as error:  # whatever is wrong with a driver or a plugin
        reason = " ".join(str(error).split())
        yield f"JAX cannot start: {type(error).__name__}: {reason}"


def _driver() -> Iterator[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield "no nvidia-smi"
        return
    query = "name,driver_version,memory.total,memory.used,compute_cap"
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_DRIVER_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield f"nvidia-smi does not answer ({error})"
        return
    yield from (done.stdout or done.stderr).splitlines()


def _environment() -> Iterator[str]:
    for name, value in sorted(os.environ.items()):
        if name.startswith(_VARIABLES):
            yield f"{name}={value}"
    for name in _SECRETS:
        if name in os.environ:
            yield f"{name} is set"


def _missing() -> Iterator[str]:
    """Yield what is not there, with the way to get it."""
    if importlib.util.find_spec("tensorflow") is None:
        yield "TensorFlow: training does without; tfds: sources need pip install 'cramjax[tfds]'"
    if shutil.which("nvidia-smi") and not _has_cuda():
        yield (
            "JAX's plugin for this NVIDIA card: pip install 'cramjax[cuda13]' (driver 580 or "
            "newer), or 'cramjax[cuda12]'"
        )
    if shutil.disk_usage(pathlib.Path()).free < _LEAST_FREE_GB * 1e9:
        yield f"disk: under {_LEAST_FREE_GB} GB are free here; a day's text takes more"

    shared = pathlib.Path("/dev/shm")
    if sys.platform == "linux" and not os.access(shared, os.W_OK):
        yield "/dev/shm cannot be written: preparation then reads with one process"
    elif shared.is_dir() and shutil.disk_usage(shared).total < _LEAST_SHARED_MB << 20:
        yield "/dev/shm is small: give the container --shm-size=1g"
    if not os.access(tempfile.gettempdir(), os.W_OK):
        yield f"{tempfile.gettempdir()} cannot be written: set TMPDIR"


def _has_cuda() -> bool:
    return any(_version(f"jax-cuda{major}-plugin") for major in (12, 13))


if __name__ == "__main__":
    sys.exit(main())

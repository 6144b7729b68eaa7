"""The abilities of this process's devices: number formats, peak rate, memory."""

from __future__ import annotations

import functools
import pathlib
import resource
import time

import jax
import jax.numpy as jnp

from cramjax.budget import peaks
from cramjax.models.encoder import Precision
from cramjax.models.kernels import Device


def resolve_precision(name: str, device: Device) -> str:
    """Returns the format of matrix products: `name`, or for "auto" the fast one on `device`.

    That is float32, bfloat16 or float16.
    """
    if name != "auto":
        return name
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "cpu":
        # Emulated bfloat16 is slower than float32. With the instructions of AVX-512 or AMX it is
        # faster (docs/benchmarks.md).
        return "bfloat16" if _cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"

    capability = float(getattr(device, "compute_capability", "0") or 0)
    if capability >= 8.0:
        return "bfloat16"
    return "float16" if capability >= 7.0 else "float32"


def make_precision(name: str, device: Device) -> Precision:
    """Returns the dtypes of a format on `device`.

    On a CPU, bfloat16 narrows only the operands of products; activations stay float32.
    """
    matmul_dtype = jnp.dtype(name)
    activation_dtype = matmul_dtype
    if device.platform == "cpu" and name == "bfloat16":
        activation_dtype = jnp.dtype("float32")
    return Precision(activation_dtype=activation_dtype, matmul_dtype=matmul_dtype, device=device)


@functools.cache
def peak_flops(device: Device, precision: str) -> float:
    """Returns the peak FLOP/s of dense products on one device.

    A card that is not in the table is measured once, on a product of width 1024, in half a second.
    """
    known = peaks.peak_flops(device.device_kind, precision)
    return known if known else measure_matmul_flops(device, precision)


def measure_matmul_flops(
    device: Device, precision: str, size: int = 1024, seconds: float = 0.3
) -> float:
    """Returns the best FLOP/s of matrix products over some seconds of repeats.

    Args:
        device: computes the products.
        precision: format of the operands; the accumulation is in float32.
        size: length of each side.
        seconds: duration of the measurement.
    """
    operand = jax.device_put(jnp.ones((size, size), precision), device)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    multiply(operand, operand).block_until_ready()

    best = float("inf")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        multiply(operand, operand).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_bytes(device: Device) -> int | None:
    """Returns the bytes this process may use on `device`.

    None on a CPU, whose memory is shared with all other programs.
    """
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats.get("bytes_limit") if stats else None


def peak_memory_bytes(device: Device) -> int | None:
    """Returns the most bytes in use on `device` so far, or None if the backend does not say."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats.get("peak_bytes_in_use") if stats else None


def memory_use(device: Device) -> dict[str, int | None]:
    """Returns `memory_bytes`, the most that was in use so far, and `memory_limit`.

    On a CPU it is the memory of the whole process, and there is no limit.
    """
    if device.platform == "cpu":
        # Linux counts in KiB.
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"memory_bytes": peak, "memory_limit": None}
    return {"memory_bytes": peak_memory_bytes(device), "memory_limit": memory_bytes(device)}


def _cpu_flags() -> set[str]:
    info = pathlib.Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()

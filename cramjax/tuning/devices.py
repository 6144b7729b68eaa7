"""What the devices of this process can do: number formats, peak rate, memory."""

from __future__ import annotations

import pathlib
import time

import jax
import jax.numpy as jnp

from cramjax.budget import peaks
from cramjax.models.encoder import Precision


def resolve_precision(name: str, device: jax.Device) -> str:
    """`name`, or for "auto" the format of matrix products that is fast on `device`: float32, bfloat16 or float16."""
    if name != "auto":
        return name
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "cpu":
        # Emulated bfloat16 is slower than float32; with the AVX-512 or AMX instructions it is faster (docs/benchmarks.md).
        return "bfloat16" if _cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"
    capability = float(getattr(device, "compute_capability", "0") or 0)
    if capability >= 8.0:
        return "bfloat16"
    return "float16" if capability >= 7.0 else "float32"


def make_precision(name: str, device: jax.Device) -> Precision:
    """The dtypes behind a format name on `device`; on CPU only the operands of products are narrow, activations stay float32."""
    dtype = jnp.dtype(name)
    activations = jnp.dtype("float32") if device.platform == "cpu" and name == "bfloat16" else dtype
    return Precision(activation_dtype=activations, matmul_dtype=dtype, device=device)


def peak_flops(device: jax.Device, precision: str) -> float:
    """FLOP/s of dense products on one `device`: from the table of cards, else measured on a 1024-wide product in half a second."""
    known = peaks.peak_flops(device.device_kind, precision)
    return known if known else measure_matmul_flops(device, precision)


def measure_matmul_flops(
    device: jax.Device, precision: str, size: int = 1024, seconds: float = 0.3
) -> float:
    """Best FLOP/s of size³ products with operands in `precision` and float32 accumulation, over `seconds` of repeats."""
    operand = jax.device_put(jnp.ones((size, size), precision), device)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    multiply(operand, operand).block_until_ready()
    best, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        multiply(operand, operand).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_bytes(device: jax.Device) -> int | None:
    """Bytes this process may use on `device`; None on CPU, where the host's memory is shared with everything else."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats.get("bytes_limit") if stats else None


def peak_memory_bytes(device: jax.Device) -> int | None:
    """Most bytes in use on `device` so far; None where the backend does not say."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats.get("peak_bytes_in_use") if stats else None


def _cpu_flags() -> set[str]:
    info = pathlib.Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()

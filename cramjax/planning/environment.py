"""The process environment in which programs are compiled for devices that are not here.

It imports no JAX, because JAX reads the environment when it starts.
"""

from __future__ import annotations

import os

MOST_DEVICES = 8
"""The most devices of a slice in `cards`; as many CPU devices stand in for shapes by formula."""

# A device that is absent cannot time kernels, so autotuning is off. Generated kernels for products
# need tiles that timing chooses, and some have no tile that fits without it; libraries choose their
# own. `compiler` asks for generated kernels with an option, and comes back to these flags if that
# fails.
_XLA_FLAGS = (
    "--xla_gpu_autotune_level=0",
    "--xla_gpu_enable_triton_gemm=false",
    f"--xla_force_host_platform_device_count={MOST_DEVICES}",
)
# Without these libtpu asks a cloud's metadata server who it is, and logs that there is none.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def prepare() -> None:
    """Set the environment; call it before JAX starts."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = (os.environ.get("XLA_FLAGS", ""), *_XLA_FLAGS)
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)

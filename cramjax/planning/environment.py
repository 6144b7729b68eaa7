"""What the process environment must be to compile for devices that are not here; imports no JAX, which reads it when it starts."""

from __future__ import annotations

import os

MOST_DEVICES = 8
"""Of a slice in `cards`: as many CPUs are pretended, for shapes by formula."""


def prepare() -> None:
    """To be called before JAX starts: nothing here is run, and kernels cannot be timed on a card that is absent."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Products of generated kernels want tiles that timing chooses: without it some have none that fit. Libraries' choose their own.
    # `compiler` asks for generated ones by an option of its own, and comes back to this where they fail.
    products = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    flags = (products, f"--xla_force_host_platform_device_count={MOST_DEVICES}")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    # libtpu would ask a cloud's metadata server who it is, and say that there is none.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
    ):
        os.environ.setdefault(name, value)

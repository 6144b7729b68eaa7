"""Expected speed of training on a device by its peak rates, without a compiler.

Two figures are enough to say how much text a budget reads: a FLOP takes 1.35 times as long as at
the dense peak, and comes with 0.0037 bytes of traffic that nothing hides. They are fitted to what
`tools.plan` expects of five recipes on three cards from the kernels of the compiled steps
(docs/benchmarks.md): within 7% for encoders, and 17 to 39% too fast for T5s, which move more
bytes. An H100 was measured within 3% of what `tools.plan` expects.
"""

from __future__ import annotations

from cramjax.budget import peaks

_PRODUCTS = 1.35
_BYTES_PER_FLOP = 0.0037
_STAND_IN = "NVIDIA A100"
# FLOP/s of a server's processors: 2 cores reach 0.5 to 0.8 TFLOP/s in large products.
_CPU_FLOPS = 4e12


def expected_flops(device_kind: str, precision: str) -> tuple[float, str]:
    """Returns the model FLOP/s that training reaches on one device.

    The result is the same on every machine with such a device.

    Args:
        device_kind: `jax.Device.device_kind`; that of a CPU is "cpu".
        precision: "float32", "bfloat16", "float16", or "auto" for the fastest that is in hardware.

    Returns:
        FLOP/s, and a note if the device is not in the table of peak rates, else "".
    """
    if device_kind.lower() == "cpu":
        return _CPU_FLOPS, f"counted with {_CPU_FLOPS / 1e12:g} TFLOP/s, a server's at most"
    peak = peaks.find(device_kind)
    note = ""
    if peak is None:
        peak = peaks.PEAKS[_STAND_IN.split()[-1].lower()]
        note = f"not in the table of peak rates, so counted as an {_STAND_IN}"

    by_precision = {"float32": peak.float32, "bfloat16": peak.bfloat16, "float16": peak.float16}
    dense = by_precision.get(precision) or peak.float32
    if precision == "auto":
        dense = peak.bfloat16 or peak.float16 or peak.float32
    seconds = _PRODUCTS / (1e12 * dense) + _BYTES_PER_FLOP / (1e9 * peak.bandwidth)
    return 1 / seconds, note

"""Expected seconds of a GPU step from its kernels, by efficiencies measured on an H100.

Every figure here is read off profiles of eleven programs, kernel by kernel (docs/benchmarks.md):
one NVIDIA H100 80GB HBM3, 2026-11-26 and 27, jax 0.11.2. The figures are shares of the card's
peaks, so other cards are scaled by their peaks; that scaling has not been measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from cramjax.planning import kernels
from cramjax.planning.cards import Card
from cramjax.planning.kernels import Kernel

MEASURED_ON = "h100"

# A product of 8192³: 770 of 989.4 TFLOP/s in bfloat16, 427 of 494.7 in TensorFloat-32.
_PRODUCTS = {"bf16": 0.778, "f16": 0.778, "f32": 0.863}
# The share of a product's result that takes time of its own. Generated products write a tile after
# its sums. Libraries write much of it beside the sums of the next tile, so that float32 results
# (twice the bytes) still slow them: 20% forward.
_WRITTEN_AFTER = {"generated": 1.0, "library": 0.5}
# Large element-wise kernels, reductions of columns, copies: 2.5 to 3.1 of 3.35 TB/s.
_MEMORY = 0.87
# Generated kernels that reduce rows (norms, softmax) and keep them in registers: 1.7 to 2.9 TB/s.
_ROWS = 0.63
# cuDNN's attention with heads of 64. Forward it is bound by memory at 128 tokens and reaches 370
# TFLOP/s at 512. Backward three kernels follow each other, so that bytes (2.1 TB/s) and products
# (500 TFLOP/s) add. With a bias it reaches 200 TFLOP/s forward.
_ATTENTION_FORWARD = {"forward": 0.374, "forward with bias": 0.202}
_ATTENTION_BACKWARD = 0.505
_ATTENTION_MEMORY = 0.627
# Our kernel of attention for short sequences: 2.5 TB/s forward and 2.3 backward, timed alone; with
# rotary positions 1.8 and 1.4. With dropout 1.6 and 1.1, measured in a step before heads were read
# ahead.
_SHORT_ATTENTION = {
    "short forward": 0.738,
    "short backward": 0.694,
    "short forward with rotary": 0.539,
    "short backward with rotary": 0.414,
    "short forward with dropout": 0.474,
    "short backward with dropout": 0.341,
}
# Random bits and GELUs, bound by instructions as `traffic` counts them: 12 to 16 of 33 T/s.
_OPERATIONS = 0.4
# From the end of one kernel to the end of the next one, if that has nothing to do.
_LAUNCH_S = 2e-6


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rates of a card.

    Attributes:
        products: FLOP/s that products reach, by element type.
        peak: FLOP/s at most.
        memory: bytes/s at most.
        operations: float32 instructions/s that kernels reach.
    """

    products: Mapping[str, float]
    peak: float
    memory: float
    operations: float


@dataclasses.dataclass(frozen=True)
class KernelRow:
    """A kernel and the expected seconds of all its launches in a step."""

    kernel: Kernel
    seconds: float


def rates(card: Card) -> Rates:
    """Returns the rates of a GPU, by the shares of its peaks that the H100 reached."""
    peak = card.peak
    # A type without hardware for it runs at the rate of float32.
    dense = {
        "bf16": 1e12 * (peak.bfloat16 or peak.float32),
        "f16": 1e12 * (peak.float16 or peak.float32),
        "f32": 1e12 * peak.float32,
    }
    return Rates(
        products={dtype: share * dense[dtype] for dtype, share in _PRODUCTS.items()},
        peak=max(dense.values()),
        memory=1e9 * peak.bandwidth,
        operations=_OPERATIONS * card.instructions_per_s,
    )


def rows(launched: Sequence[Kernel], card: Card) -> list[KernelRow]:
    """Returns the kernels with their expected seconds, in the order given."""
    reached = rates(card)
    ledger = []
    for kernel in launched:
        seconds = kernel.count * (_seconds(kernel, reached) + _LAUNCH_S)
        ledger.append(KernelRow(kernel, seconds))
    return ledger


def by_kind(ledger: Sequence[KernelRow]) -> dict[str, float]:
    """Returns the expected seconds of a step by kind of kernel, the largest first."""
    total = dict.fromkeys(kernels.KINDS, 0.0)
    for row in ledger:
        total[row.kernel.kind] += row.seconds
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _seconds(kernel: Kernel, reached: Rates) -> float:
    """Returns the expected seconds of one launch on the device, by its slowest resource."""
    work = kernel.work
    memory = _MEMORY * reached.memory
    n_bytes = work.read + work.written

    if kernel.kind == kernels.PRODUCTS:
        multiply = work.flops / reached.products.get(kernel.dtype, reached.products["f32"])
        multiply += _WRITTEN_AFTER[kernel.form] * work.written / memory
        return max(multiply, n_bytes / memory, work.operations / reached.operations)

    if kernel.kind == kernels.ATTENTION:
        return _attention_s(kernel, reached)

    if kernel.form == "rows":
        memory = _ROWS * reached.memory
    return max(n_bytes / memory, work.operations / reached.operations)


def _attention_s(kernel: Kernel, reached: Rates) -> float:
    work = kernel.work
    n_bytes = work.read + work.written
    if kernel.form in _SHORT_ATTENTION:
        moved = n_bytes / (_SHORT_ATTENTION[kernel.form] * reached.memory)
        return max(moved, work.flops / (_ATTENTION_BACKWARD * reached.peak))
    if kernel.form == "backward":
        moved = n_bytes / (_ATTENTION_MEMORY * reached.memory)
        return moved + work.flops / (_ATTENTION_BACKWARD * reached.peak)
    multiplied = work.flops / (_ATTENTION_FORWARD[kernel.form] * reached.peak)
    return max(n_bytes / (_MEMORY * reached.memory), multiplied)

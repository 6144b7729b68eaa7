"""The largest microbatch that fits the device, from compiled memory analysis instead of from a crash."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Sequence

import jax

from cramjax.config.errors import UserError

# Left free for the allocator's fragmentation and for what the run puts beside the step (evaluation, prefetched batches).
HEADROOM = 0.9
# On CPU a larger forward pass is not faster, it only falls out of the caches.
CPU_TOKENS = 4096
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def choose_microbatch(
    compile_step: Callable[[int], jax.stages.Compiled],
    *,
    batch_size: int,
    shards: int,
    seq_len: int,
    limit_bytes: int | None,
) -> int:
    """Sequences a forward pass: the largest divisor of `batch_size` (and multiple of `shards`) whose step fits `limit_bytes`.

    Args:
        compile_step: microbatch size → compiled train step.
        limit_bytes: memory of one device; None on CPU.

    Raises:
        UserError: if not even the smallest fits, or there is none.
    """
    sizes = microbatch_sizes(batch_size, shards)
    if limit_bytes is None:
        return max([n for n in sizes if n * seq_len <= CPU_TOKENS * shards] or sizes[:1])
    found = search(lambda n: needed_bytes(lambda: compile_step(n)), sizes, limit_bytes)
    if found.largest is None:
        small = sizes[0]
        raise UserError(
            f"the train step needs {found.used[small] / 2**30:.1f} GiB with {small} sequence(s) a pass, the device has "
            f"{limit_bytes / 2**30:.1f} GiB; set --config.model.remat=full, a smaller model, or --config.mesh.fsdp=-1 on more devices; "
            "tools.plan says what fits"
        )
    return found.largest


def microbatch_sizes(batch_size: int, shards: int) -> list[int]:
    """The sequences a pass may have, ascending: divisors of `batch_size` of which each of `shards` parts has as many rows.

    Raises:
        UserError: if there are none.
    """
    sizes = [n for n in range(shards, batch_size + 1, shards) if batch_size % n == 0]
    if not sizes:
        raise UserError(f"batch_size={batch_size}: must be a multiple of the {shards} devices along the batch")
    return sizes


@dataclasses.dataclass(frozen=True)
class Found:
    """`largest`: the microbatch, None where not even the smallest fits; `used`: bytes a device by the sizes that were compiled."""

    largest: int | None
    used: dict[int, int]

    @property
    def per_sequence(self) -> float:
        """Bytes that each further sequence takes, from the smallest and the largest size that were compiled; 0 from one alone."""
        first, last = min(self.used), max(self.used)
        return (self.used[last] - self.used[first]) / max(1, last - first)


def search(measure: Callable[[int], int], sizes: Sequence[int], limit_bytes: int) -> Found:
    """The largest of `sizes`, ascending, of which `measure` says that its step needs at most `HEADROOM` of `limit_bytes`.

    Memory grows linearly with the microbatch, so two of them, some way apart, predict the rest and a third one confirms.
    """
    room = HEADROOM * limit_bytes
    small = sizes[0]
    second = next((n for n in sizes if n >= 16 * small), sizes[-1])
    used = {n: measure(n) for n in {small: None, second: None}}
    slope = (used[second] - used[small]) / max(1, second - small)
    fitting = [n for n in sizes if used[small] + slope * (n - small) <= room]
    while fitting:
        candidate = fitting.pop()
        if candidate not in used:
            used[candidate] = measure(candidate)
        if used[candidate] <= room:
            return Found(candidate, used)
    return Found(None, used)


def needed_bytes(compile_step: Callable[[], jax.stages.Compiled]) -> int:
    """Bytes a device needs for a program and what it is given; also where the compiler refuses it for lack of memory, as a TPU's does."""
    try:
        memory = compile_step().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        wanted = re.search(r"Used ([\d.]+)([KMG]) of", str(error))
        return round(float(wanted[1]) * _UNITS[wanted[2]]) if wanted else sys.maxsize
    # Donated arguments are counted once.
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the compiler for it, has run out of memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)

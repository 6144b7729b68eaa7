"""The largest microbatch that fits the device, from compiled memory analysis instead of from a crash."""

from __future__ import annotations

from collections.abc import Callable

import jax

from cramjax.config.errors import UserError

# Left free for the allocator's fragmentation and for what the run puts beside the step (evaluation, prefetched batches).
HEADROOM = 0.9
# On CPU a larger forward pass is not faster, it only falls out of the caches.
CPU_TOKENS = 4096


def choose_microbatch(
    compile_step: Callable[[int], jax.stages.Compiled],
    *,
    batch_size: int,
    shards: int,
    seq_len: int,
    limit_bytes: int | None,
) -> int:
    """Sequences a forward pass: the largest divisor of `batch_size` (and multiple of `shards`) whose step fits `limit_bytes`.

    Temporaries grow linearly with the microbatch, so two small compilations predict the rest and a third one confirms.

    Args:
        compile_step: microbatch size → compiled train step.
        limit_bytes: memory of one device; None on CPU.

    Raises:
        UserError: if not even the smallest fits.
    """
    sizes = [n for n in range(shards, batch_size + 1, shards) if batch_size % n == 0]
    if not sizes:
        raise UserError(f"batch_size={batch_size}: must be a multiple of the {shards} devices along the batch")
    if limit_bytes is None:
        return max([n for n in sizes if n * seq_len <= CPU_TOKENS * shards] or sizes[:1])
    room = HEADROOM * limit_bytes
    small = sizes[0]
    used = {small: _bytes(compile_step(small))}
    second = sizes[min(2, len(sizes) - 1)]
    if second != small:
        used[second] = _bytes(compile_step(second))
    slope = (used[second] - used[small]) / max(1, second - small)
    fitting = [n for n in sizes if used[small] + slope * (n - small) <= room]
    while fitting:
        candidate = fitting.pop()
        if candidate not in used:
            used[candidate] = _bytes(compile_step(candidate))
        if used[candidate] <= room:
            return candidate
    raise UserError(
        f"the train step needs {used[small] / 2**30:.1f} GiB with {small} sequence(s) a pass, the device has "
        f"{limit_bytes / 2**30:.1f} GiB; set --config.model.remat=full, a smaller model, or --config.mesh.fsdp=-1 on more devices"
    )


def _bytes(compiled: jax.stages.Compiled) -> int:
    memory = compiled.memory_analysis()
    # Donated arguments are counted once.
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )

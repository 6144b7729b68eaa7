"""The largest microbatch that fits the device, from compiled memory analysis instead of from a
crash.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import re
import sys
import time
from collections.abc import Callable, Sequence

import jax

from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.tuning.answers import Answer

# Left free for the allocator's fragmentation and for what the run puts beside the step (evaluation,
# prefetched batches).
HEADROOM = 0.9
# On CPU a larger forward pass is not faster, it only falls out of the caches.
CPU_TOKENS = 4096
# The formula is never as wrong as this: what needs so many times the room by it is not compiled at
# all.
FORMULA_ERROR = 2.0
# A second compilation in full, for a larger size than one that fits, has to be sure to fit.
SURE = 0.97
# A probe is asked for memory alone. Without timing kernels, some products of generated ones find no
# tiles that fit.
PROBE_OPTIONS = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_backend_optimization_level": 0,
}
_REMATERIALISED = re.compile(r"^ *(?:ROOT )?%?[\w.-]+\.remat\d*(?:\.\d+)* = ", re.MULTILINE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_GIB = 2**30

Program = tuple[jax.stages.Compiled, float]
"""A compiled step and the seconds that took."""


def cpu_microbatch(sizes: Sequence[int], *, shards: int, seq_len: int) -> int:
    """The largest of `sizes` whose tokens stay in the caches of a CPU; nothing is compiled."""
    return max([n for n in sizes if n * seq_len <= CPU_TOKENS * shards] or sizes[:1])


def choose_microbatch(
    lower: Callable[[int], jax.stages.Lowered],
    sizes: Sequence[int],
    limit_bytes: int,
    formula: Callable[[int], int],
    *,
    platform: str,
    answer: Answer,
    announce: Announce,
) -> tuple[int, Program]:
    """The largest of `sizes` whose step fits `limit_bytes` of a device, and that step, compiled to
    be trained with.

    Args:
        lower: microbatch size → lowered train step.
        formula: microbatch size → bytes of a device by formula.
        platform: of the devices; a probe on GPUs is compiled without autotuning.
        answer: of an earlier search; where it still holds there is none.

    Raises:
        UserError: if not even the smallest fits.
    """
    if program := _remembered(lower, sizes, limit_bytes, answer, announce):
        return program
    candidates = _Candidates(lower, limit_bytes, formula, platform, announce)
    found = search(candidates.compile, sizes, limit_bytes, formula, candidates.probe)
    if found.largest is None:
        small = sizes[0]
        raise UserError(
            f"the train step needs {found.used[small] / _GIB:.1f} GiB with {small} sequence(s) a pass, the device has "
            f"{limit_bytes / _GIB:.1f} GiB; set --config.model.remat=full, a smaller model, or --config.mesh.fsdp=-1 "
            "on more devices; tools.plan says what fits"
        )
    size = found.largest
    answer.write({"microbatch_size": size, "program": candidates.fingerprints[size]})
    return size, candidates.programs[size]


def _remembered(
    lower: Callable[[int], jax.stages.Lowered],
    sizes: Sequence[int],
    limit_bytes: int,
    answer: Answer,
    announce: Announce,
) -> tuple[int, Program] | None:
    """The size and step that an earlier search has chosen; None where its program was another one."""
    known = answer.read() or {}
    size = known.get("microbatch_size")
    if size not in sizes:
        return None
    lowered = lower(size)
    if fingerprint(lowered) != known.get("program"):
        return None
    announce(f"microbatch: {size:,} sequences a pass, as found before; compiling the train step…")
    started = time.monotonic()
    compiled = lowered.compile()
    if needed_bytes(lambda: compiled) > HEADROOM * limit_bytes:
        return None
    return size, (compiled, time.monotonic() - started)


class _Candidates:
    """Compiles steps of several sizes, and says which and what they need."""

    def __init__(
        self,
        lower: Callable[[int], jax.stages.Lowered],
        limit_bytes: int,
        formula: Callable[[int], int],
        platform: str,
        announce: Announce,
    ):
        self._lower, self._formula, self._announce = lower, formula, announce
        self._room = f"{HEADROOM * limit_bytes / _GIB:.1f} GiB"
        self._probe_options = PROBE_OPTIONS if platform in ("gpu", "cuda", "rocm") else {}
        self.programs: dict[int, Program] = {}
        self.fingerprints: dict[int, str] = {}

    def probe(self, sizes: Sequence[int]) -> list[int | None]:
        """Bytes of the steps of small sizes, side by side: a compilation leaves most cores idle
        most of the time.
        """
        shown = " and ".join(f"{n:,}" for n in sizes)
        self._announce(
            f"microbatch: asking the compiler what {shown} sequence(s) a pass need, of {self._room}…"
        )
        with concurrent.futures.ThreadPoolExecutor(len(sizes)) as pool:
            return list(pool.map(self._probe, sizes))

    def _probe(self, size: int) -> int | None:
        started = time.monotonic()
        n_bytes = fitting_bytes(lambda: self._compile_probe(self._lower(size)))
        # A program that comes from the compile cache may have forgotten its temporaries.
        if n_bytes is not None and n_bytes < self._formula(size) / FORMULA_ERROR:
            n_bytes = self._formula(size)
        self._tell(size, n_bytes, time.monotonic() - started)
        return n_bytes

    def _compile_probe(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        try:
            return lowered.compile(compiler_options=dict(self._probe_options))
        except jax.errors.JaxRuntimeError as error:
            if is_out_of_memory(error):
                raise
        # The next XLA may not know these options, or not be able to do without autotuning.
        return lowered.compile()

    def compile(self, size: int) -> int | None:
        """Bytes of the step as it is going to be trained with; it is kept."""
        self._announce(f"microbatch: compiling the train step for {size:,} sequence(s) a pass…")

        def compile_step() -> jax.stages.Compiled:
            lowered = self._lower(size)
            self.fingerprints[size] = fingerprint(lowered)
            started = time.monotonic()
            compiled = lowered.compile()
            self.programs[size] = compiled, time.monotonic() - started
            return compiled

        started = time.monotonic()
        n_bytes = fitting_bytes(compile_step)
        self._tell(size, n_bytes, time.monotonic() - started)
        return n_bytes

    def _tell(self, size: int, n_bytes: int | None, seconds: float) -> None:
        needs = "too much" if n_bytes is None else f"{n_bytes / _GIB:.1f} GiB"
        self._announce(
            f"microbatch: {size:,} sequence(s) a pass need {needs}, of {self._room} ({seconds:.0f} s)"
        )


def fingerprint(lowered: jax.stages.Lowered) -> str:
    """A hash of a program before it is compiled."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def microbatch_sizes(batch_size: int, shards: int) -> list[int]:
    """The sequences a pass may have, ascending: divisors of `batch_size` of which each of `shards`
    parts has as many rows.

    Raises:
        UserError: if there are none.
    """
    sizes = [n for n in range(shards, batch_size + 1, shards) if batch_size % n == 0]
    if not sizes:
        raise UserError(
            f"batch_size={batch_size}: must be a multiple of the {shards} devices along the batch"
        )
    return sizes


@dataclasses.dataclass(frozen=True)
class Found:
    """`largest`: the microbatch, None where not even the smallest fits; `used`: bytes a device by
    the sizes that were compiled.
    """

    largest: int | None
    used: dict[int, int]

    @property
    def per_sequence(self) -> float:
        """Bytes that each further sequence takes, from the smallest and the largest size that were
        compiled; 0 from one alone.
        """
        first, last = min(self.used), max(self.used)
        return (self.used[last] - self.used[first]) / max(1, last - first)


def search(
    measure: Callable[[int], int | None],
    sizes: Sequence[int],
    limit_bytes: int,
    formula: Callable[[int], int],
    probe: Callable[[Sequence[int]], list[int | None]] | None = None,
) -> Found:
    """The largest of `sizes`, ascending, whose step needs at most `HEADROOM` of `limit_bytes`.

    Memory grows linearly with the microbatch: two small sizes predict the rest, and the compiler
    never meets one that is much too large, for which it would recompute by itself for minutes. The
    formula says how small is small.

    Args:
        measure: bytes of the step of a size, compiled in full; None where it cannot fit as it is.
        formula: bytes by formula.
        probe: bytes of small sizes, in a cheaper way than `measure`.
    """
    room = HEADROOM * limit_bytes
    # What the formula rules out is not compiled.
    sizes = [n for n in sizes if formula(n) <= FORMULA_ERROR * room] or sizes[:1]
    guess = max([n for n in sizes if formula(n) <= room] or sizes[:1])
    small = sorted({max([n for n in sizes if n <= guess / part] or sizes[:1]) for part in (16, 4)})
    answers = probe(small) if probe else [measure(n) for n in small]
    used = {n: n_bytes for n, n_bytes in zip(small, answers, strict=True) if n_bytes is not None}
    measured = {} if probe else dict(zip(small, answers, strict=True))

    largest, too_large = None, min([n for n in small if n not in used], default=sys.maxsize)
    while True:
        margin = 1.0 if largest is None else SURE
        fitting = [
            n
            for n in sizes
            if (largest or 0) < n < too_large and _predicted(n, used, formula) <= margin * room
        ]
        # That nothing fits is said of the smallest step itself, not of a prediction.
        if not fitting and largest is None and sizes[0] < too_large and sizes[0] not in measured:
            fitting = sizes[:1]
        if not fitting:
            break

        size = fitting[-1]
        if size not in measured:
            measured[size] = measure(size)
        n_bytes = measured[size]
        if n_bytes is not None:
            used[size] = n_bytes
        if n_bytes is None or n_bytes > room:
            too_large = size
        else:
            largest = size

    if largest is None:
        used.setdefault(sizes[0], sys.maxsize)
    return Found(largest, used)


def _predicted(size: int, used: dict[int, int], formula: Callable[[int], int]) -> float:
    """Bytes of a step of `size`: on the line through the two largest sizes that are known, or
    through one and the formula.
    """
    if not used:
        return formula(size)
    known = sorted(used)
    last = known[-1]
    if len(known) > 1:
        slope = (used[last] - used[known[-2]]) / (last - known[-2])
    else:
        by_formula = (formula(last) - formula(0)) / last
        slope = max((used[last] - formula(0)) / last, by_formula / FORMULA_ERROR)
    return used[last] + slope * (size - last)


def fitting_bytes(compile_step: Callable[[], jax.stages.Compiled]) -> int | None:
    """Bytes a device needs for a program; None where the compiler recomputes parts of it to save
    memory, which is slower.
    """
    programs: list[jax.stages.Compiled] = []

    def compile_and_keep() -> jax.stages.Compiled:
        programs.append(compile_step())
        return programs[0]

    n_bytes = needed_bytes(compile_and_keep)
    return None if programs and is_rematerialised(programs[0]) else n_bytes


def is_rematerialised(compiled: jax.stages.Compiled) -> bool:
    """Whether XLA itself recomputes instructions of the program, because it did not fit otherwise."""
    try:
        text = compiled.as_text()
    except (
        jax.errors.JaxRuntimeError
    ):  # not every backend knows the text of a program from the cache
        return False
    return _REMATERIALISED.search(text or "") is not None


def needed_bytes(compile_step: Callable[[], jax.stages.Compiled]) -> int:
    """Bytes a device needs for a program and what it is given; also where the compiler refuses it
    for lack of memory, as a TPU's does.
    """
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

"""The largest microbatch that fits the device, found by the compiler's memory analysis.

No step has to run out of memory for it. The words: `limit_bytes` is a device's memory, and the room
is the share `HEADROOM` of it.
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

# A step may take this share of a device. The rest is for the allocator's fragmentation, evaluations
# and prefetched batches.
HEADROOM = 0.9
# On a CPU a larger forward pass is not faster: it only falls out of the caches.
CPU_TOKENS = 4096
# The formula is never wrong by this factor. A size that needs this factor times the room, by the
# formula, is not compiled at all.
FORMULA_ERROR = 2.0
# With one size that fits, a larger one is compiled only if its prediction leaves this margin.
SURE = 0.97
# A probe is asked for memory alone. Without autotuning, generated kernels may find no fitting tiles
# for some matrix products, so they are off as well.
PROBE_OPTIONS = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_backend_optimization_level": 0,
}
_REMATERIALISED = re.compile(r"^ *(?:ROOT )?%?[\w.-]+\.remat\d*(?:\.\d+)* = ", re.MULTILINE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_GIB = 2**30

Program = tuple[jax.stages.Compiled, float]
"""A compiled step, and the seconds that its compilation took."""


def cpu_microbatch(sizes: Sequence[int], *, shards: int, seq_len: int) -> int:
    """Returns the largest of `sizes` whose tokens stay in a CPU's caches; nothing is compiled.

    The smallest size if none does.
    """
    return _largest(sizes, lambda n: n * seq_len <= CPU_TOKENS * shards)


def _largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Returns the largest of the ascending `sizes` that fits, or the smallest if none does."""
    return max([n for n in sizes if fits(n)], default=sizes[0])


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
    """Returns the largest of `sizes` whose step fits a device, and that step, compiled.

    Args:
        lower: lowers the train step of a microbatch size.
        sizes: the sizes, ascending.
        limit_bytes: memory of a device.
        formula: returns the bytes of a size on a device, by formula.
        platform: of the devices; a probe on GPUs is compiled without autotuning.
        answer: the answer of an earlier search, which saves this one if it still holds.
        announce: is told each compilation and its result.

    Raises:
        UserError: if the smallest size does not fit.
    """
    if program := _remembered(lower, sizes, limit_bytes, answer, announce):
        return program

    candidates = _Candidates(lower, limit_bytes, formula, platform, announce)
    searched = search(candidates.compile, sizes, limit_bytes, formula, candidates.probe)
    if searched.largest is None:
        small = sizes[0]
        raise UserError(
            f"the train step needs {searched.used[small] / _GIB:.1f} GiB with {small} sequence(s) "
            f"a pass, the device has {limit_bytes / _GIB:.1f} GiB; "
            "set --config.model.remat=full, a smaller model, or --config.mesh.fsdp=-1 "
            "on more devices; tools.plan says what fits"
        )

    size = searched.largest
    answer.write({"microbatch_size": size, "program": candidates.fingerprints[size]})
    return size, candidates.programs[size]


def _remembered(
    lower: Callable[[int], jax.stages.Lowered],
    sizes: Sequence[int],
    limit_bytes: int,
    answer: Answer,
    announce: Announce,
) -> tuple[int, Program] | None:
    """Returns the size and step that an earlier search has chosen.

    None if there was no search, or if the program or the room have changed since.
    """
    known = answer.read() or {}
    size = known.get("microbatch_size")
    if not isinstance(size, int) or size not in sizes:
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
    """Compiles steps of several sizes; announces each and the memory it needs."""

    def __init__(
        self,
        lower: Callable[[int], jax.stages.Lowered],
        limit_bytes: int,
        formula: Callable[[int], int],
        platform: str,
        announce: Announce,
    ):
        self._lower = lower
        self._formula = formula
        self._announce = announce
        self._room = f"{HEADROOM * limit_bytes / _GIB:.1f} GiB"
        self._probe_options = PROBE_OPTIONS if platform in ("gpu", "cuda", "rocm") else {}
        self.programs: dict[int, Program] = {}
        self.fingerprints: dict[int, str] = {}

    def probe(self, sizes: Sequence[int]) -> list[int | None]:
        """Returns the bytes of each of `sizes`, compiled cheaply and side by side.

        A compilation leaves most cores idle most of the time.
        """
        names = " and ".join(f"{n:,}" for n in sizes)
        self._announce(
            f"microbatch: asking the compiler what {names} sequence(s) a pass need, "
            f"of {self._room}…"
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
        # Another version of XLA may not know these options, or may need autotuning.
        return lowered.compile()

    def compile(self, size: int) -> int | None:
        """Returns the bytes of the step as it will train; keeps its program."""
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
            f"microbatch: {size:,} sequence(s) a pass need {needs}, "
            f"of {self._room} ({seconds:.0f} s)"
        )


def fingerprint(lowered: jax.stages.Lowered) -> str:
    """Returns a hash of a program before it is compiled."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def microbatch_sizes(most: int, shards: int, key: str = "batch_size") -> list[int]:
    """Returns the possible microbatches, ascending: divisors of `most`, multiples of `shards`.

    Raises:
        UserError: if there is no such size; names the `key` that `most` is of.
    """
    sizes = [n for n in range(shards, most + 1, shards) if most % n == 0]
    if not sizes:
        raise UserError(f"{key}={most}: must be a multiple of the {shards} devices along the batch")
    return sizes


@dataclasses.dataclass(frozen=True)
class Searched:
    """The result of a search.

    Attributes:
        largest: the microbatch, or None if the smallest does not fit.
        used: bytes a device needs, by each size that was compiled.
    """

    largest: int | None
    used: dict[int, int]

    @property
    def per_sequence(self) -> float:
        """Bytes that each further sequence takes; 0 if only one size was compiled."""
        first = min(self.used)
        last = max(self.used)
        return (self.used[last] - self.used[first]) / max(1, last - first)


def search(
    measure: Callable[[int], int | None],
    sizes: Sequence[int],
    limit_bytes: int,
    formula: Callable[[int], int],
    probe: Callable[[Sequence[int]], list[int | None]] | None = None,
) -> Searched:
    """Find the largest of `sizes` whose step needs at most `HEADROOM` of `limit_bytes`.

    Memory grows linearly with the microbatch, so two small sizes predict the rest. The compiler
    never meets a size that is much too large; for such a size it would recompute by itself, for
    minutes. The formula says which sizes are small.

    Args:
        measure: returns the bytes of a size, compiled in full; None if it cannot fit as it is.
        sizes: the sizes, ascending.
        limit_bytes: memory of a device.
        formula: returns the bytes of a size, by formula.
        probe: returns the bytes of several small sizes in a cheaper way than `measure`.
    """
    room = HEADROOM * limit_bytes
    # Sizes that the formula rules out are not compiled.
    sizes = [n for n in sizes if formula(n) <= FORMULA_ERROR * room] or sizes[:1]
    guess = _largest(sizes, lambda n: formula(n) <= room)
    sixteenth = _largest(sizes, lambda n: n <= guess / 16)
    quarter = _largest(sizes, lambda n: n <= guess / 4)
    small = sorted({sixteenth, quarter})

    # Bytes by size: `used` of whatever could be compiled, `measured` by a compilation in full.
    answers = probe(small) if probe else [measure(n) for n in small]
    used = {n: n_bytes for n, n_bytes in zip(small, answers, strict=True) if n_bytes is not None}
    measured = {} if probe else dict(zip(small, answers, strict=True))

    largest: int | None = None
    too_large = min([n for n in small if n not in used], default=sys.maxsize)
    while True:
        # The next candidate: the largest size that is predicted to fit.
        margin = 1.0 if largest is None else SURE
        possible = [n for n in sizes if (largest or 0) < n < too_large]
        fitting = [n for n in possible if _predicted(n, used, formula) <= margin * room]
        # A prediction is not enough to say that nothing fits: the smallest step is compiled first.
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
    return Searched(largest, used)


def _predicted(size: int, used: dict[int, int], formula: Callable[[int], int]) -> float:
    """Returns the predicted bytes of `size`.

    It lies on the line through the two largest sizes in `used`. With one size in `used`, the line
    goes through it and the formula's size 0, but is never much flatter than the formula. With no
    size in `used`, the formula predicts.
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
    """Returns the bytes a device needs for a program.

    None if the compiler recomputes parts of the program to save memory, because that is slower.
    """
    programs: list[jax.stages.Compiled] = []

    def compile_and_keep() -> jax.stages.Compiled:
        programs.append(compile_step())
        return programs[0]

    n_bytes = needed_bytes(compile_and_keep)
    return None if programs and is_rematerialised(programs[0]) else n_bytes


def is_rematerialised(compiled: jax.stages.Compiled) -> bool:
    """Returns whether XLA recomputes instructions of the program, which it does to make it fit."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        # Not every backend knows the text of a program from the cache.
        return False
    return _REMATERIALISED.search(text or "") is not None


def needed_bytes(compile_step: Callable[[], jax.stages.Compiled]) -> int:
    """Returns the bytes a device needs for a program and its arguments.

    If the compiler refuses the program for lack of memory, as a TPU's does, its error names the
    bytes; without a number in it the result is `sys.maxsize`.
    """
    try:
        memory = compile_step().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        wanted = re.search(r"Used ([\d.]+)([KMG]) of", str(error))
        return round(float(wanted[1]) * _UNITS[wanted[2]]) if wanted else sys.maxsize

    if memory is None:
        raise RuntimeError("this backend cannot say how much memory a program needs")
    # Donated arguments are counted once.
    return (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether a device, or the compiler for it, has run out of memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)

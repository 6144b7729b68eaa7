"""Lists the kernels that an optimised GPU program launches: their kind, number and work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from cramjax.models import gated_gelu, short_attention
from cramjax.planning import traffic
from cramjax.planning.hlo import Computation, Instruction, Program
from cramjax.planning.traffic import Work

PRODUCTS = "products"
ATTENTION = "attention"
ELEMENTWISE = "elementwise"
REDUCTIONS = "reductions"
COPIES = "copies"
OTHER = "other"
KINDS: tuple[str, ...] = (PRODUCTS, ATTENTION, ELEMENTWISE, REDUCTIONS, COPIES, OTHER)

# Opcodes that launch nothing: names of memory, or ends of what was started before.
_SILENT = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency",
    "opt-barrier", "partition-id", "replica-id", "fusion-done", "async-update", "async-done",
    "copy-done",
})  # fmt: skip
# Exchange between devices. Its speed depends on their links, which a plan does not know.
_COLLECTIVE = ("all-", "reduce-scatter", "collective-", "ragged-all-to-all", "send", "recv")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a program.

    Attributes:
        name: name of its instruction.
        kind: one of `KINDS`.
        count: launches a step.
        work: the work of one launch.
        dtype: element type of a product's operands, else of the result.
        op_name: path of the operation in the traced function.
        form: tells apart kernels of a kind that differ in rate. Products are "generated" or come
            from a "library". cuDNN's attention is "forward", "forward with bias" or "backward", our
            own is "short forward" or "short backward", which may have "with rotary" or "with
            dropout" behind it. Generated reductions go by "rows".
    """

    name: str
    kind: str
    count: int
    work: Work
    dtype: str
    op_name: str
    form: str = ""


@dataclasses.dataclass(frozen=True)
class _Launch:
    """A kernel without its name and number; the fields are those of `Kernel`."""

    kind: str
    work: Work
    dtype: str
    form: str = ""


def launched(program: Program, loops: int) -> list[Kernel]:
    """Returns all kernels of a step in the program's order, without collectives.

    Args:
        program: an optimised program.
        loops: how often a loop runs if only the run knows its bound: the microbatches of a step.
    """
    return list(_launched(program, program.entry, 1, loops))


def has_collectives(program: Program) -> bool:
    """Returns True if devices exchange anything; `launched` leaves out the time for it."""
    for computation in program.computations.values():
        if any(instruction.opcode.startswith(_COLLECTIVE) for instruction in computation):
            return True
    return False


def _launched(program: Program, name: str, count: int, loops: int) -> Iterator[Kernel]:
    """Yields the kernels of the computation `name`, which runs `count` times a step."""
    computation = program.computations[name]
    for instruction in computation:
        opcode = instruction.opcode
        if opcode == "while":
            trips = loops if instruction.trip_count is None else instruction.trip_count
            yield from _launched(program, _called(instruction, "body"), count * trips, loops)
        elif opcode in ("call", "async-start"):
            inner = _called(instruction, "to_apply", "calls")
            yield from _launched(program, inner, count, loops)
        elif opcode == "conditional":
            # One branch runs; the one with the most kernels counts.
            branches = [
                list(_launched(program, branch, count, loops)) for branch in _branches(instruction)
            ]
            yield from max(branches, key=len)

        elif opcode not in _SILENT and not opcode.startswith(_COLLECTIVE):
            launch = _launch(program, computation, instruction)
            yield Kernel(
                name=instruction.name,
                kind=launch.kind,
                count=count,
                work=launch.work,
                dtype=launch.dtype,
                op_name=instruction.op_name,
                form=launch.form,
            )


def _called(instruction: Instruction, *roles: str) -> str:
    """Returns the name of the computation that an instruction calls in the first of `roles`."""
    for role in roles:
        name = instruction.called(role)
        if name is not None:
            return name
    raise ValueError(f"{instruction.name}: calls no computation as {' or '.join(roles)}")


def _branches(conditional: Instruction) -> list[str]:
    """Returns the names of the computations among which a conditional chooses."""
    listed = conditional.find(r"branch_computations=\{(.*?)\}")
    if listed:
        return [name.strip().lstrip("%") for name in listed.split(",")]
    return [_called(conditional, role) for role in ("true_computation", "false_computation")]


def _launch(program: Program, computation: Computation, instruction: Instruction) -> _Launch:
    if instruction.opcode in ("fusion", "fusion-start"):
        return _fusion(instruction, program.computations[_called(instruction, "calls")])
    if instruction.target.startswith("__cublas"):
        return _library_product(computation, instruction)
    if instruction.target.startswith("__cudnn$fmha"):
        return _attention(computation, instruction)
    if short_attention.NAME in instruction.op_name:
        return _short_attention(computation, instruction)
    if gated_gelu.NAME in instruction.op_name:
        halves = instruction.arrays[0]
        work = Work(_bytes(computation.operands(instruction)), halves.n_bytes, 0, 0)
        return _Launch(ELEMENTWISE, work, halves.dtype)
    return _plain(computation, instruction)


def _fusion(instruction: Instruction, fused: Computation) -> _Launch:
    work = traffic.of(fused)
    dots = [one for one in fused if one.opcode == "dot"]
    if dots:
        left = fused.operands(dots[0])[0].arrays[0]
        return _Launch(PRODUCTS, work, left.dtype, "generated")

    dtype = fused.instructions[fused.root].arrays[0].dtype
    if any(one.opcode in traffic.REDUCES for one in fused):
        # Generated by Triton, it keeps rows in registers; XLA's own emitter goes by columns.
        backend = instruction.config.get("fusion_backend_config", {}).get("kind", "")
        form = "rows" if backend.startswith("__triton") else ""
        return _Launch(REDUCTIONS, work, dtype, form)
    kind = ELEMENTWISE if any(map(traffic.is_arithmetic, fused)) else COPIES
    return _Launch(kind, work, dtype)


def _library_product(computation: Computation, call: Instruction) -> _Launch:
    """Reads a call of cuBLAS: the first array is the result, the last may be scratch memory."""
    operands = computation.operands(call)
    result = call.arrays[0]
    left = operands[0].arrays[0]
    numbers = call.config["gemm_backend_config"]["dot_dimension_numbers"]
    contracted = math.prod(left.dims[int(place)] for place in numbers["lhs_contracting_dimensions"])
    work = Work(_bytes(operands), result.n_bytes, 2.0 * result.size * contracted, 0)
    return _Launch(PRODUCTS, work, left.dtype, "library")


# FLOPs of attention by score and dimension of a head: two products forward, five backward.
_ATTENTION_FLOPS = {"forward": 4.0, "backward": 10.0}


def _attention(computation: Computation, call: Instruction) -> _Launch:
    """Reads a call of cuDNN.

    Backward it sums gradients of the queries in float32 in scratch memory, and reads them again. If
    a bias has a gradient, it writes the gradient of the scores as well, and two further kernels
    read it: one for the gradient of the bias, one for that of the queries.
    """
    operands = computation.operands(call)
    config = call.config["cudnn_fmha_backend_config"]
    queries = operands[0].arrays[0]
    form = "backward" if "Backward" in call.target else "forward"

    # Sizes of the scores: batch, heads, queries, keys.
    scores = [int(size) for size in config["intermediate_tensor_shape"]["dimensions"]]
    head_dim = queries.size / math.prod(scores[:-1])
    visible = 0.5 if "CAUSAL" in config.get("mask_type", "") else 1.0
    flops = _ATTENTION_FLOPS[form] * visible * math.prod(scores) * head_dim

    read = _bytes(operands)
    # The last array is scratch memory.
    results = call.arrays[:-1]
    written = float(sum(array.n_bytes for array in results))
    if form == "backward":
        read += 4.0 * queries.size
        written += 4.0 * queries.size
        # The gradients of query, key and value, and that of a bias that is not only a mask.
        if len(results) > 3:
            score_bytes = queries.n_bytes / queries.size * math.prod(scores)
            read += 2 * score_bytes
            written += score_bytes
    elif "Bias" in call.target:
        form = "forward with bias"
    return _Launch(ATTENTION, Work(read, written, flops, 0), queries.dtype, form)


def _short_attention(computation: Computation, call: Instruction) -> _Launch:
    """Reads a call of `models/short_attention.py`.

    Its first operand is a fused projection [batch, length, 3, heads, head_dim]. Backward it writes
    the gradient of the projection. Angles of rotary positions are float32, seeds of dropout uint32.
    """
    operands = computation.operands(call)
    result = call.arrays[0]
    fused = operands[0].arrays[0]
    n_rows, length, _, n_heads, head_dim = fused.dims
    form = "backward" if result.dims == fused.dims else "forward"
    flops = _ATTENTION_FLOPS[form] * n_rows * n_heads * length**2 * head_dim
    work = Work(_bytes(operands), result.n_bytes, flops, 0)

    dtypes = {operand.arrays[0].dtype for operand in operands[1:]}
    extra = " with dropout" if "u32" in dtypes else " with rotary" if "f32" in dtypes else ""
    return _Launch(ATTENTION, work, fused.dtype, f"short {form}{extra}")


def _plain(computation: Computation, instruction: Instruction) -> _Launch:
    """Reads an instruction that is not fused, or a call of anything else."""
    operands = computation.operands(instruction)
    opcode = instruction.opcode
    read = _bytes(operands)
    written = float(instruction.n_bytes)
    if opcode in ("dynamic-slice", "slice", "gather"):
        read = written
    elif opcode == "dynamic-update-slice":
        # In place: the update is read and written, the rest of the array is not touched.
        read = written = float(operands[1].n_bytes)
    elif opcode == "copy-start":
        written = read

    if opcode == "dot":
        flops = traffic.dot_flops(computation, instruction)
        work = Work(read, written, flops, 0)
        return _Launch(PRODUCTS, work, operands[0].arrays[0].dtype, "library")
    if opcode in traffic.REDUCES:
        kind = REDUCTIONS
    elif opcode in traffic.PLACES or opcode == "copy-start":
        kind = COPIES
    else:
        kind = OTHER if opcode in ("custom-call", "sort") else ELEMENTWISE
    dtype = instruction.arrays[0].dtype if instruction.arrays else ""
    return _Launch(kind, Work(read, written, 0, 0), dtype)


def _bytes(instructions: list[Instruction]) -> float:
    return float(sum(one.n_bytes for one in instructions))

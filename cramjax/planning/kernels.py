"""Lists the kernels that an optimised GPU program launches: their kind, number and work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from cramjax.models import short_attention
from cramjax.planning import traffic
from cramjax.planning.hlo import Computation, Instruction, Program
from cramjax.planning.traffic import Work

PRODUCTS, ATTENTION, ELEMENTWISE, REDUCTIONS, COPIES, OTHER = KINDS = (
    "products", "attention", "elementwise", "reductions", "copies", "other",
)  # fmt: skip

# They launch nothing: names of memory, or answers to what was started before.
_SILENT = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "opt-barrier", "partition-id",
    "replica-id", "fusion-done", "async-update", "async-done", "copy-done",
})  # fmt: skip
# Between devices; how fast depends on what connects them, which a plan does not know.
_COLLECTIVE = ("all-", "reduce-scatter", "collective-", "ragged-all-to-all", "send", "recv")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a program, launched `count` times a step.

    kind: one of `KINDS`. work: of one launch. dtype: of a product's operands, else of the result.
    form: what sets its rate apart from others of its kind. Products are "generated" or of a "library",
    attention is "forward" or "backward", generated reductions go by "rows".
    """

    name: str
    kind: str
    count: int
    work: Work
    dtype: str
    op_name: str
    form: str = ""


def launched(program: Program, loops: int) -> list[Kernel]:
    """All kernels of a step in the program's order; collectives are left out.

    Args:
        loops: how often a loop runs whose bound only the run knows: the microbatches of a step.
    """
    return list(_of(program, program.computations[program.entry], 1, loops))


def has_collectives(program: Program) -> bool:
    """Whether devices exchange anything, whose time `launched` leaves out."""
    for computation in program.computations.values():
        if any(instruction.opcode.startswith(_COLLECTIVE) for instruction in computation):
            return True
    return False


def _of(program: Program, computation: Computation, count: int, loops: int) -> Iterator[Kernel]:
    for instruction in computation:
        opcode = instruction.opcode
        if opcode == "while":
            trips = loops if instruction.trip_count is None else instruction.trip_count
            yield from _of(
                program, program.computations[instruction.called("body")], count * trips, loops
            )
        elif opcode in ("call", "async-start"):
            inner = instruction.called("to_apply") or instruction.called("calls")
            yield from _of(program, program.computations[inner], count, loops)
        elif opcode == "conditional":
            branches = [program.computations[name] for name in _branches(instruction)]
            yield from max((list(_of(program, one, count, loops)) for one in branches), key=len)
        elif opcode not in _SILENT and not opcode.startswith(_COLLECTIVE):
            yield _kernel(program, computation, instruction, count)


def _branches(conditional: Instruction) -> list[str]:
    """Names of the computations of which one is run."""
    listed = conditional.find(r"branch_computations=\{(.*?)\}")
    if listed:
        return [name.strip().lstrip("%") for name in listed.split(",")]
    return [conditional.called("true_computation"), conditional.called("false_computation")]


def _kernel(
    program: Program, computation: Computation, instruction: Instruction, count: int
) -> Kernel:
    if instruction.opcode in ("fusion", "fusion-start"):
        kind, work, dtype, form = _fusion(
            instruction, program.computations[instruction.called("calls")]
        )
    elif instruction.target.startswith("__cublas"):
        kind, work, dtype, form = _library_product(computation, instruction)
    elif instruction.target.startswith("__cudnn$fmha"):
        kind, work, dtype, form = _attention(computation, instruction)
    elif short_attention.NAME in instruction.op_name:
        kind, work, dtype, form = _short_attention(computation, instruction)
    else:
        kind, work, dtype, form = _plain(computation, instruction)
    return Kernel(instruction.name, kind, count, work, dtype, instruction.op_name, form)


def _fusion(instruction: Instruction, fused: Computation) -> tuple[str, Work, str, str]:
    work = traffic.of(fused)
    dots = [one for one in fused if one.opcode == "dot"]
    if dots:
        return PRODUCTS, work, fused.operands(dots[0])[0].arrays[0].dtype, "generated"
    dtype = fused.instructions[fused.root].arrays[0].dtype
    if any(one.opcode in traffic.REDUCES for one in fused):
        written_by = instruction.config.get("fusion_backend_config", {}).get("kind", "")
        form = "rows" if written_by.startswith("__triton") else ""
        return REDUCTIONS, work, dtype, form
    kind = ELEMENTWISE if any(map(traffic.is_arithmetic, fused)) else COPIES
    return kind, work, dtype, ""


def _library_product(computation: Computation, call: Instruction) -> tuple[str, Work, str, str]:
    """A call of cuBLAS: the first array is the result, the last may be scratch memory."""
    operands, result = computation.operands(call), call.arrays[0]
    left = operands[0].arrays[0]
    numbers = call.config["gemm_backend_config"]["dot_dimension_numbers"]
    contracted = math.prod(left.dims[int(place)] for place in numbers["lhs_contracting_dimensions"])
    work = Work(_bytes(operands), result.n_bytes, 2.0 * result.size * contracted, 0)
    return PRODUCTS, work, left.dtype, "library"


def _attention(computation: Computation, call: Instruction) -> tuple[str, Work, str, str]:
    """A call of cuDNN's: two products forward and five backward.

    Backward sums gradients of the queries in float32, in scratch memory, and reads them again.
    """
    operands, config = computation.operands(call), call.config["cudnn_fmha_backend_config"]
    scores = [int(size) for size in config["intermediate_tensor_shape"]["dimensions"]]
    queries, backward = operands[0].arrays[0], "Backward" in call.target
    head = queries.size / math.prod(scores[:-1])
    visible = 0.5 if "CAUSAL" in config.get("mask_type", "") else 1.0
    flops = (10.0 if backward else 4.0) * visible * math.prod(scores) * head

    sums = 4.0 * queries.size if backward else 0.0
    written = sum(array.n_bytes for array in call.arrays[:-1])  # the last is scratch memory
    work = Work(_bytes(operands) + sums, written + sums, flops, 0)
    return ATTENTION, work, queries.dtype, "backward" if backward else "forward"


def _short_attention(computation: Computation, call: Instruction) -> tuple[str, Work, str, str]:
    """A call of `models/short_attention.py`, of a fused projection [batch, length, 3, heads, head_dim].

    Backward it writes the gradient of the projection.
    """
    operands, result = computation.operands(call), call.arrays[0]
    fused = operands[0].arrays[0]
    n_rows, length, _, n_heads, head_dim = fused.dims
    backward = result.dims == fused.dims
    flops = (10.0 if backward else 4.0) * n_rows * n_heads * length**2 * head_dim
    work = Work(_bytes(operands), result.n_bytes, flops, 0)
    return ATTENTION, work, fused.dtype, "backward" if backward else "forward"


def _plain(computation: Computation, instruction: Instruction) -> tuple[str, Work, str, str]:
    """An instruction that was left unfused, or a call of something else."""
    operands, opcode = computation.operands(instruction), instruction.opcode
    read, written = _bytes(operands), instruction.n_bytes
    if opcode in ("dynamic-slice", "slice", "gather"):
        read = written
    elif opcode == "dynamic-update-slice":
        read = written = operands[1].n_bytes
    elif opcode == "copy-start":
        written = read

    if opcode == "dot":
        flops = traffic.dot_flops(computation, instruction)
        return PRODUCTS, Work(read, written, flops, 0), operands[0].arrays[0].dtype, "library"
    if opcode in traffic.REDUCES:
        kind = REDUCTIONS
    elif opcode in traffic.PLACES or opcode == "copy-start":
        kind = COPIES
    else:
        kind = OTHER if opcode in ("custom-call", "sort") else ELEMENTWISE
    dtype = instruction.arrays[0].dtype if instruction.arrays else ""
    return kind, Work(read, written, 0, 0), dtype, ""


def _bytes(instructions: list[Instruction]) -> float:
    return float(sum(one.n_bytes for one in instructions))

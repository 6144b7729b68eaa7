"""Counts what a fused kernel reads, writes and computes, from the instructions inside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from cramjax.planning.hlo import Computation, Instruction

# Opcodes that compute nothing: they say where a value lies, or that it is a constant.
PLACES = frozenset({
    "parameter", "constant", "iota", "bitcast", "reshape", "tuple", "get-tuple-element", "copy",
    "transpose", "slice", "dynamic-slice", "dynamic-update-slice", "concatenate", "pad", "reverse",
    "gather", "broadcast", "convert",
})  # fmt: skip
REDUCES = frozenset({"reduce", "reduce-window"})
_PARTS = ("slice", "dynamic-slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")
_WHOLE = ("dot", "broadcast", "sort", "tuple", *_PARTS, *_UPDATES)
# Shifts and masks of random bits: the machine has one instruction for two or three of HLO.
_INTEGERS = ("s32", "u32", "s64", "u64", "pred")
_INTEGER_COST = 0.4
# Machine instructions an element, about as many as CUDA's library of float32 functions has.
_COSTS = {
    "erf": 20, "power": 20, "tanh": 10, "logistic": 8, "exponential": 4, "exponential-minus-one": 8,
    "log": 4, "log-plus-one": 8, "rsqrt": 4, "sqrt": 4, "cbrt": 8, "divide": 4, "cosine": 16,
    "sine": 16,
}  # fmt: skip
# A thread that only fills memory stores one element at a time, however narrow.
_FILL_COST = 16


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one launch of a kernel.

    Attributes:
        read: bytes read from memory.
        written: bytes written to memory.
        flops: FLOPs of products.
        operations: float32 instructions of everything else.
    """

    read: float
    written: float
    flops: float
    operations: float


def of(fused: Computation) -> Work:
    """Returns the work of a fused computation.

    An operand that is only sliced counts as its slices. A result that is updated in place counts as
    the update. A value is computed once for all its users, but again for each side of a
    concatenation.
    """
    results = _results(fused)
    needed = _needed(fused, results)
    parameters = [one for one in fused if one.opcode == "parameter" and one.size]
    read = sum(needed[one.name] * one.n_bytes / one.size for one in parameters)
    written = sum(_written(fused, result) for result in results)
    flops = sum(dot_flops(fused, one) for one in fused if one.opcode == "dot")

    groups = _computed_apart(fused, results)
    operations = sum(_operations(fused, _needed(fused, group)) for group in groups)
    if not read and not operations:
        operations = _FILL_COST * sum(result.size for result in results)
    return Work(read, written, flops, operations)


def dot_flops(computation: Computation, dot: Instruction) -> float:
    """Returns the FLOPs of a product: two for each element of the result and contracted place."""
    left = computation.operands(dot)[0].arrays[0]
    contracted = math.prod(left.dims[place] for place in dot.numbers("lhs_contracting_dims"))
    return 2.0 * dot.size * contracted


def is_arithmetic(instruction: Instruction) -> bool:
    """Returns True if an instruction computes numbers, not places or random bits."""
    return instruction.opcode not in PLACES and instruction.arrays[0].dtype not in _INTEGERS


def _results(fused: Computation) -> list[Instruction]:
    root = fused.instructions[fused.root]
    return fused.operands(root) if root.opcode == "tuple" else [root]


def _computed_apart(fused: Computation, results: Sequence[Instruction]) -> list[list[Instruction]]:
    """Returns groups of results: each side of a concatenation alone, all others together."""
    groups = [[result for result in results if result.opcode != "concatenate"]]
    for result in results:
        if result.opcode == "concatenate":
            groups += [[side] for side in fused.operands(result)]
    return groups


def _written(fused: Computation, result: Instruction) -> float:
    """Returns the bytes of a result that reach memory."""
    while result.opcode == "bitcast":
        (result,) = fused.operands(result)
    if result.opcode == "dynamic-update-slice":
        return fused.operands(result)[1].n_bytes
    if result.opcode == "scatter":
        # A scatter adds: each update is read, added and written.
        return 2 * fused.operands(result)[-1].n_bytes
    return result.n_bytes


def _operations(fused: Computation, needed: Mapping[str, float]) -> float:
    computing = [one for one in fused if one.opcode not in PLACES and one.opcode != "dot"]
    return sum(needed[one.name] * _cost(one) for one in computing)


def _cost(instruction: Instruction) -> float:
    if instruction.arrays[0].dtype in _INTEGERS:
        return _INTEGER_COST
    return _COSTS.get(instruction.opcode, 1)


def _needed(fused: Computation, results: Sequence[Instruction]) -> dict[str, float]:
    """Returns the number of elements of each instruction that the results need, by name."""
    needed = dict.fromkeys(fused.instructions, 0.0)
    needed |= {result.name: float(result.size) for result in results}
    # Elements that slices of an instruction take, by the slice: equal slices count once.
    slices: dict[str, dict[str, float]] = {name: {} for name in fused.instructions}

    # From the results upwards, so that all users of an instruction come before it.
    for user in reversed(list(fused)):
        sliced = sum(slices[user.name].values())
        amount = min(user.size, max(needed[user.name], sliced))
        needed[user.name] = amount
        if not amount or user.opcode == "tuple":
            continue
        for place, operand in enumerate(fused.operands(user)):
            if place == 0 and user.opcode in _PARTS:
                bounds = user.find(r"slice=\{(.*?)\}") or user.name
                slices[operand.name][bounds] = amount
            else:
                share = min(operand.size, _share(user, place, operand, amount))
                needed[operand.name] = max(needed[operand.name], share)
    return needed


def _share(user: Instruction, place: int, operand: Instruction, amount: float) -> float:
    """Returns the elements of an operand that its user needs for `amount` of its own."""
    if place == 0 and user.opcode in _UPDATES:
        return 0
    if user.opcode in _WHOLE:
        return operand.size
    if user.opcode in REDUCES or user.opcode == "concatenate":
        return operand.size * amount / user.size
    return amount

"""Counts what a fused kernel reads, writes and computes, from the instructions inside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from cramjax.planning.hlo import Computation, Instruction

# They compute nothing: they say where a value lies, or that it is a constant.
PLACES = frozenset({
    "parameter", "constant", "iota", "bitcast", "reshape", "tuple", "get-tuple-element", "copy", "transpose", "slice", "dynamic-slice",
    "dynamic-update-slice", "concatenate", "pad", "reverse", "gather", "broadcast", "convert",
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
    "erf": 20, "power": 20, "tanh": 10, "logistic": 8, "exponential": 4, "exponential-minus-one": 8, "log": 4, "log-plus-one": 8,
    "rsqrt": 4, "sqrt": 4, "cbrt": 8, "divide": 4, "cosine": 16, "sine": 16,
}  # fmt: skip
# A thread that only fills memory stores one element at a time, however narrow.
_FILL_COST = 16


@dataclasses.dataclass(frozen=True)
class Work:
    """One launch of a kernel.

    read, written: bytes of memory. flops: of products. operations: float32 instructions of all else.
    """

    read: float
    written: float
    flops: float
    operations: float


def of(fused: Computation) -> Work:
    """The work of a fused computation.

    Of an operand that is only sliced, the slices are read. Of a result that is updated in place,
    the update is written. A value is computed once however many use it, but for each side of a
    concatenation anew.
    """
    results = _results(fused)
    needed = _needed(fused, results)
    read = sum(
        needed[one.name] * one.n_bytes / one.size
        for one in fused
        if one.opcode == "parameter" and one.size
    )
    written = sum(_written(fused, result) for result in results)
    flops = sum(dot_flops(fused, one) for one in fused if one.opcode == "dot")

    operations = sum(
        _operations(fused, _needed(fused, group)) for group in _computed_apart(fused, results)
    )
    if not read and not operations:
        operations = _FILL_COST * sum(result.size for result in results)
    return Work(read, written, flops, operations)


def dot_flops(computation: Computation, dot: Instruction) -> float:
    """FLOPs of a product: two for every element of the result and of the contracted sizes."""
    left = computation.operands(dot)[0].arrays[0]
    return (
        2.0
        * dot.size
        * math.prod(left.dims[place] for place in dot.numbers("lhs_contracting_dims"))
    )


def is_arithmetic(instruction: Instruction) -> bool:
    """Whether it computes numbers, rather than places or random bits."""
    return instruction.opcode not in PLACES and instruction.arrays[0].dtype not in _INTEGERS


def _results(fused: Computation) -> list[Instruction]:
    root = fused.instructions[fused.root]
    return fused.operands(root) if root.opcode == "tuple" else [root]


def _computed_apart(fused: Computation, results: Sequence[Instruction]) -> list[list[Instruction]]:
    """The sides of concatenations, each alone, and all other results together."""
    groups = [[result for result in results if result.opcode != "concatenate"]]
    for result in results:
        if result.opcode == "concatenate":
            groups += [[side] for side in fused.operands(result)]
    return groups


def _written(fused: Computation, result: Instruction) -> float:
    """Bytes of a result that reach memory."""
    while result.opcode == "bitcast":
        (result,) = fused.operands(result)
    if result.opcode == "dynamic-update-slice":
        return fused.operands(result)[1].n_bytes
    if result.opcode == "scatter":  # sums: each update is read, added and written
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
    """Elements of each instruction that the results need, by name."""
    whole = dict.fromkeys(fused.instructions, 0.0)
    parts: dict[str, dict[str, float]] = {name: {} for name in fused.instructions}
    whole |= {result.name: float(result.size) for result in results}

    for user in reversed(list(fused)):
        amount = min(user.size, max(whole[user.name], sum(parts[user.name].values())))
        whole[user.name] = amount
        if not amount or user.opcode == "tuple":
            continue
        for place, operand in enumerate(fused.operands(user)):
            if place == 0 and user.opcode in _PARTS:
                parts[operand.name][user.find(r"slice=\{(.*?)\}") or user.name] = amount
            else:
                share = _share(user, place, operand, amount)
                whole[operand.name] = max(whole[operand.name], min(operand.size, share))
    return whole


def _share(user: Instruction, place: int, operand: Instruction, amount: float) -> float:
    """Elements of an operand that its user needs for `amount` elements of its own."""
    if place == 0 and user.opcode in _UPDATES:
        return 0
    if user.opcode in _WHOLE:
        return operand.size
    if user.opcode in REDUCES or user.opcode == "concatenate":
        return operand.size * amount / user.size
    return amount

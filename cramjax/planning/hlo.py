"""Reads optimised HLO text (`compiled.as_text()`) into programs, computations and instructions."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"([\w\-]+)\(")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array: an element type as HLO writes it ("bf16", "s32", "pred") and its sizes."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def n_bytes(self) -> int:
        """Bytes in memory, elements of less than a byte packed."""
        return math.ceil(self.size * _bits(self.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = arrays opcode(operands), attributes`.

    arrays: one, or those of a tuple, flat. operands: names of instructions of the same computation.
    index: the number of a parameter, or of the element that is taken of a tuple.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    index: int | None = None

    @property
    def size(self) -> int:
        """Elements of all arrays."""
        return sum(array.size for array in self.arrays)

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.n_bytes for array in self.arrays)

    @property
    def op_name(self) -> str:
        """Path of the operation in the traced function; empty of what the compiler made."""
        return self.find(r'op_name="([^"]*)"') or ""

    @property
    def target(self) -> str:
        """What a custom call calls; empty of others."""
        return self.find(r'custom_call_target="([^"]*)"') or ""

    @property
    def config(self) -> dict[str, Any]:
        """The compiler's note for its back end: JSON with numbers as strings, empty if none."""
        start = self.attributes.find("backend_config={")
        if start < 0:
            return {}
        return json.JSONDecoder().raw_decode(self.attributes, start + len("backend_config="))[0]

    @property
    def trip_count(self) -> int | None:
        """How often the body of a `while` runs; None where only the run knows."""
        found = self.config.get("known_trip_count")
        return int(found["n"]) if found else None

    def called(self, role: str) -> str | None:
        """Name of the computation in a `role`: "calls", "body", "to_apply"."""
        return self.find(rf"\b{role}=%?([\w.\-]+)")

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """The list of an attribute, as `lhs_contracting_dims={1}`; empty where it is not there."""
        found = self.find(rf"\b{attribute}=\{{([\d,]*)\}}")
        return tuple(map(int, re.findall(r"\d+", found or "")))

    def find(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes; None where it is not there."""
        found = re.search(pattern, self.attributes)
        return found and found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order; `root` names the one whose value is returned."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """The instructions whose values `instruction` takes."""
        return [
            self.instructions[name] for name in instruction.operands if name in self.instructions
        ]

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """Who takes the value of each instruction; one that takes it twice stands there once."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for name in dict.fromkeys(instruction.operands):
                if name in found:
                    found[name].append(instruction)
        return found


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations by name; `entry` is the name of the one that is run."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program of an HLO text.

    Raises:
        ValueError: where the text has no entry computation.
    """
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        header = _HEADER.match(line) if line.endswith("{") else None
        if header:
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name] = _computation(name, lines)
            name = None
        elif name:
            lines.append(line)

    if entry not in computations:
        raise ValueError("no ENTRY computation: not the text of an HLO program")
    return Program(computations, entry)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        named = _NAMED.match(line)
        if not named:
            continue
        instruction = _instruction(named[2], line[named.end() :])
        instructions[instruction.name] = instruction
        root = instruction.name if named[1] else root
    return Computation(name, instructions, root or next(reversed(instructions), ""))


def _instruction(name: str, text: str) -> Instruction:
    """The instruction of what stands behind "name = "."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.search(text, end)
    close = _closing(text, opcode.end() - 1)
    inside, attributes = text[opcode.end() : close], text[close + 1 :]

    index = None
    if opcode[1] == "parameter":
        index = int(inside)
    elif opcode[1] == "get-tuple-element":
        index = int(re.search(r"index=(\d+)", attributes)[1])
    operands = () if opcode[1] in ("parameter", "constant") else _names(inside)
    return Instruction(name, opcode[1], _arrays(text[:end]), operands, attributes, index)


def _arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a shape; the bound stands for a size that only the run knows (`<=8`)."""
    arrays = []
    for dtype, sizes in _ARRAY.findall(text):
        dims = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        arrays.append(Array(dtype, dims))
    return tuple(arrays)


def _names(inside: str) -> tuple[str, ...]:
    """The operands of a list that may have their shapes beside them: "%a, f32[2,3]{1,0} %b"."""
    marked = re.findall(r"%([\w.\-]+)", inside)
    return tuple(marked or re.findall(r"[\w.\-]+", inside))


def _closing(text: str, start: int) -> int:
    """Place of the bracket that closes the one at `start`."""
    depth = 0
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return start + place.start()
    raise ValueError(f"unbalanced brackets: {text[:80]}")


def _bits(dtype: str) -> int:
    """Bits of an element: "bf16", "s8" and "f8e4m3fn" name theirs."""
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.search(r"\d+", dtype)
    return int(width[0]) if width else 0

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

    Attributes:
        arrays: the result: one array, or those of a tuple, flat.
        operands: names of instructions of the same computation.
        attributes: the text behind the operands.
        index: the number of a parameter, or of the element that is taken from a tuple.
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
        """Path of the operation in the traced function; empty if the compiler made it."""
        return self.find(r'op_name="([^"]*)"') or ""

    @property
    def target(self) -> str:
        """The target of a custom call; empty for other instructions."""
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
        """Number of times that the body of a `while` runs, or None if only the run knows."""
        known = self.config.get("known_trip_count")
        return int(known["n"]) if known else None

    def called(self, role: str) -> str | None:
        """Returns the computation in a `role` ("calls", "body", "to_apply") by name, or None."""
        return self.find(rf"\b{role}=%?([\w.\-]+)")

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """Returns the list of an attribute, as `lhs_contracting_dims={1}`; empty without it."""
        listed = self.find(rf"\b{attribute}=\{{([\d,]*)\}}")
        return tuple(map(int, re.findall(r"\d+", listed or "")))

    def find(self, pattern: str) -> str | None:
        """Returns the first group of a pattern in the attributes, or None without a match."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order; `root` names the one that gives the result."""

    name: str
    instructions: Mapping[str, Instruction]
    root: str

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """Returns the instructions whose values `instruction` takes."""
        return [
            self.instructions[name] for name in instruction.operands if name in self.instructions
        ]

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """The instructions that take the value of each one, by its name, without repetition."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for name in dict.fromkeys(instruction.operands):
                if name in users:
                    users[name].append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations by name; `entry` is the name of the one that runs."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """Returns the program of an HLO text.

    Raises:
        ValueError: if the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry: str | None = None
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        header = _HEADER.match(line) if line.endswith("{") else None
        if header:
            name = header[2]
            lines = []
            if header[1]:
                entry = name
        elif line.startswith("}") and name:
            computations[name] = _computation(name, lines)
            name = None
        elif name:
            lines.append(line)

    if entry is None or entry not in computations:
        raise ValueError("no ENTRY computation: not the text of an HLO program")
    return Program(computations, entry)


def _computation(name: str, lines: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root = ""
    for line in lines:
        named = _NAMED.match(line)
        if not named:
            continue
        instruction = _instruction(named[2], line[named.end() :])
        instructions[instruction.name] = instruction
        if named[1]:
            root = instruction.name

    # Without a mark the last instruction is the root.
    return Computation(name, instructions, root or next(reversed(instructions), ""))


def _instruction(name: str, text: str) -> Instruction:
    """Returns the instruction of the text behind "name = "."""
    # The shape ends at a space, or at the closing bracket of a tuple.
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    match = _OPCODE.search(text, end)
    if match is None:
        raise ValueError(f"{name}: no opcode in {text[:80]!r}")
    opcode = match[1]
    close = _closing(text, match.end() - 1)
    inside = text[match.end() : close]
    attributes = text[close + 1 :]

    index = None
    if opcode == "parameter":
        index = int(inside)
    elif opcode == "get-tuple-element":
        (index,) = map(int, re.findall(r"\bindex=(\d+)", attributes)[:1])
    operands = () if opcode in ("parameter", "constant") else _names(inside)
    return Instruction(name, opcode, _arrays(text[:end]), operands, attributes, index)


def _arrays(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a shape; a size that only the run knows (`<=8`) counts as its bound."""
    arrays = []
    for dtype, sizes in _ARRAY.findall(text):
        dims = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        arrays.append(Array(dtype, dims))
    return tuple(arrays)


def _names(inside: str) -> tuple[str, ...]:
    """Returns the operands of a list, in which shapes may stand: "%a, f32[2,3]{1,0} %b"."""
    marked = re.findall(r"%([\w.\-]+)", inside)
    return tuple(marked or re.findall(r"[\w.\-]+", inside))


def _closing(text: str, start: int) -> int:
    """Returns the place of the bracket that closes the one at `start`."""
    depth = 0
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return start + place.start()
    raise ValueError(f"unbalanced brackets: {text[:80]}")


def _bits(dtype: str) -> int:
    """Returns the bits of an element; most types have them in their names ("bf16", "f8e4m3fn")."""
    if dtype in _BITS:
        return _BITS[dtype]
    width = re.search(r"\d+", dtype)
    return int(width[0]) if width else 0

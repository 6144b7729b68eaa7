"""Short sequences side by side in rows, so that nothing is computed for padding.

A batch of 16 sentences of CoLA is 180 tokens; padded to its longest it would be 380, padded to 128 it would be 2,048. Sequences of a row
do not see each other (`segments`) and count their own places (`positions`), so the result is that of padded rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# Lengths of rows, at least so long that a short sequence finds company: one compilation each. Longer ones are multiples of the last.
ROW_LENGTHS = (64, 96, 128, 192, 256, 384, 512)
# Numbers of rows of a batch: within a third of what is needed, since each is a compilation too.
ROW_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# A sequence takes at least this many tokens of a row, for the bound on sequences a batch of evaluation.
MIN_SHARE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of a text, and the type of each token (0, in a second text 1); int32 [length] each."""

    ids: np.ndarray
    types: np.ndarray


def row_length(longest: int) -> int:
    """Length of rows for sequences of at most `longest` tokens."""
    fitting = [length for length in ROW_LENGTHS if length >= longest]
    return fitting[0] if fitting else -(-longest // ROW_LENGTHS[-1]) * ROW_LENGTHS[-1]


def row_count(needed: int) -> int:
    """The number of rows, of those that are compiled, that holds `needed`."""
    fitting = [count for count in ROW_COUNTS if count >= needed]
    return fitting[0] if fitting else -(-needed // 64) * 64


def place(lengths: Sequence[int], length: int) -> list[tuple[int, int]]:
    """(row, offset) of each sequence in rows of `length`: the longest first, each in the first row with room (first-fit decreasing)."""
    used: list[int] = []
    places: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = max(lengths[index], MIN_SHARE)
        row = next(
            (number for number, taken in enumerate(used) if taken + size <= length), len(used)
        )
        if row == len(used):
            used.append(0)
        places[index] = row, used[row]
        used[row] += size
    return places


def n_rows(places: Sequence[tuple[int, int]]) -> int:
    """Rows that `place` used."""
    return 1 + max((row for row, _ in places), default=0)


def pack(
    sequences: Sequence[Encoded],
    places: Sequence[tuple[int, int]],
    rows: int,
    length: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """The arrays of a batch: tokens, positions, segments, types int32 [rows, length], and first int32 [n].

    Segment 0 is padding; `first` is where each sequence begins in the flattened rows.
    """
    shape = (rows, length)
    tokens = np.full(shape, pad_id, np.int32)
    positions, segments, types = (np.zeros(shape, np.int32) for _ in range(3))
    for number, (sequence, (row, offset)) in enumerate(
        zip(sequences, places, strict=True), start=1
    ):
        there = slice(offset, offset + len(sequence.ids))
        tokens[row, there], types[row, there] = sequence.ids, sequence.types
        positions[row, there], segments[row, there] = np.arange(len(sequence.ids)), number
    first = np.asarray([row * length + offset for row, offset in places], np.int32)
    return {
        "tokens": tokens,
        "positions": positions,
        "segments": segments,
        "types": types,
        "first": first,
    }

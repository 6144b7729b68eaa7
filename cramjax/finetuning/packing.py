"""Packs short sequences side by side in rows, so that little is computed for padding.

A batch of 16 sentences of CoLA has 180 tokens. Padded to its longest sentence it would have 380,
padded to 128 it would have 2,048. Sequences of a row do not see each other (`segments`) and each
counts its own positions (`positions`), so the outputs are those of padded rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

ROW_LENGTHS = (64, 96, 128, 192, 256, 384, 512)
"""Tokens in a row; longer rows are multiples of the last. Each length is compiled, so there are
few. The shortest one still has room for several short sequences."""

ROW_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)
"""Rows in a batch; larger batches have multiples of 64. Each count is compiled too, so a count may
be up to a third as large again as needed."""

MAX_SEARCHED = 64
"""Sequences whose rows are searched for. More of them fill rows well as they come."""

MIN_SHARE = 4
"""Tokens that a sequence takes of a row at least. It bounds the sequences in a batch of
evaluation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids and token types of a text, int32 [length] each; types are 1 in a second text."""

    ids: np.ndarray
    types: np.ndarray


def row_length(longest: int) -> int:
    """Returns the length of rows for sequences of at most `longest` tokens."""
    fitting = [length for length in ROW_LENGTHS if length >= longest]
    if fitting:
        return fitting[0]
    return math.ceil(longest / ROW_LENGTHS[-1]) * ROW_LENGTHS[-1]


def fitted_length(longest: int) -> int:
    """Returns the length of rows for a batch of sequences of like length, at most `longest`.

    It is a multiple of 32, so that little is padded. Many lengths are compiled.
    """
    return max(ROW_LENGTHS[0], math.ceil(longest / 32) * 32)


def row_count(needed: int) -> int:
    """Returns the smallest number of rows that is compiled and holds `needed`."""
    fitting = [count for count in ROW_COUNTS if count >= needed]
    if fitting:
        return fitting[0]
    return math.ceil(needed / 64) * 64


def place(lengths: Sequence[int], length: int) -> list[tuple[int, int]]:
    """Returns (row, offset) of each sequence in rows of `length`."""
    shares = [max(n_tokens, MIN_SHARE) for n_tokens in lengths]
    rows = _first_fit(shares, length)
    # Few sequences have few places to go, and a row more is a large part of the batch.
    if len(shares) <= MAX_SEARCHED and len(rows) * length - sum(shares) >= length:
        rows = min(rows, _filled(shares, length), key=len)

    places = [(0, 0)] * len(lengths)
    for number, row in enumerate(rows):
        offset = 0
        for index in row:
            places[index] = (number, offset)
            offset += shares[index]
    return places


def _first_fit(shares: Sequence[int], length: int) -> list[list[int]]:
    """Returns the sequences of each row: the longest comes first, into the first row with room."""
    rows: list[list[int]] = []
    room: list[int] = []  # of each row
    for index in _longest_first(shares):
        rows_with_room = (row for row, left in enumerate(room) if left >= shares[index])
        row = next(rows_with_room, len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)

        rows[row].append(index)
        room[row] -= shares[index]
    return rows


def _filled(shares: Sequence[int], length: int) -> list[list[int]]:
    """Returns the sequences of each row: the longest that is left, and what fills the row best."""
    rows = []
    left = _longest_first(shares)
    while left:
        longest, *others = left
        room = length - shares[longest]
        row = [longest, *_best_sum(others, shares, room)]
        rows.append(row)
        left = [index for index in left if index not in row]
    return rows


def _longest_first(shares: Sequence[int]) -> list[int]:
    return sorted(range(len(shares)), key=lambda index: -shares[index])


def _best_sum(indices: Sequence[int], shares: Sequence[int], room: int) -> list[int]:
    """Returns those of `indices` whose shares have the largest sum of at most `room`.

    Of several such choices it is the one with the largest shares, if they come first in `indices`.
    """
    # Bit n of a number is set if some of the last indices have the sum n.
    sums = [1]
    for index in reversed(indices):
        sums.append((sums[-1] | sums[-1] << shares[index]) & ((2 << room) - 1))

    rest = sums.pop().bit_length() - 1
    chosen = []
    for index in indices:
        behind = sums.pop()
        if rest >= shares[index] and behind >> (rest - shares[index]) & 1:
            chosen.append(index)
            rest -= shares[index]
    return chosen


def n_rows(places: Sequence[tuple[int, int]]) -> int:
    """Returns the number of rows that `place` used, at least 1."""
    return 1 + max((row for row, _ in places), default=0)


def pack(
    sequences: Sequence[Encoded],
    places: Sequence[tuple[int, int]],
    rows: int,
    length: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Returns the arrays of a batch.

    Args:
        places: (row, offset) of each sequence.
        rows: number of rows.
        length: tokens in a row.

    Returns:
        tokens, positions, segments and types, int32 [rows, length], and first, int32 [sequences].
        Segment 0 is padding. `first` is the start of each sequence in the flattened rows.
    """
    shape = (rows, length)
    tokens = np.full(shape, pad_id, np.int32)
    positions = np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    types = np.zeros(shape, np.int32)

    numbered = enumerate(zip(sequences, places, strict=True), start=1)
    for number, (sequence, (row, offset)) in numbered:
        n_tokens = len(sequence.ids)
        span = slice(offset, offset + n_tokens)
        tokens[row, span] = sequence.ids
        types[row, span] = sequence.types
        positions[row, span] = np.arange(n_tokens)
        segments[row, span] = number

    first = np.asarray([row * length + offset for row, offset in places], np.int32)
    return {
        "tokens": tokens,
        "positions": positions,
        "segments": segments,
        "types": types,
        "first": first,
    }

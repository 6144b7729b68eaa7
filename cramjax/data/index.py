"""Which sequence a row of training reads: stateless, a pure function of (seed, row number).

NumPy only and no files. A row number is turned into a source by a fixed pattern of exact shares, and into a
sequence of that source by a pseudo-random permutation that is new in every epoch of the source. Nothing is
stored, so any row costs the same, a run resumes at any row, and processes agree without talking. The
permutation is a Feistel network over Z_a × Z_b with cycle walking (Black and Rogaway, "Ciphers with arbitrary
finite domains", CT-RSA 2002), with the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as its
round function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

MIXTURE_BLOCK = 1 << 16
"""Rows over which the shares of a mixture are exact: a weight is honoured to 1/65536."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_N_ROUNDS = (
    12  # 6 do from a few dozen sequences on; 12 also make the smallest sizes close to uniform
)
_PATTERN_KEY, _SEQUENCE_KEY = 1, 2


def permute(positions: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """Images uint64 [n] of `positions` uint64 [n] under the permutation of [0, size) that `key` picks.

    `key` is a number of up to 64 bits, or uint64 [n] with one for each position. A bijection for every key
    and every `size` up to 2**62.
    """
    positions = np.asarray(positions, np.uint64)
    if not 0 < size <= 1 << 62:
        raise ValueError(f"size {size} is outside [1, 2**62]")
    if positions.size and positions.max() >= size:
        raise ValueError(f"position {positions.max()} is not below the size {size}")
    keys = np.broadcast_to(np.asarray(key, np.uint64), positions.shape)
    # The rectangle a × b just covers [0, size): at most a - 1 of its cells lie outside, so walks are rare.
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    image = _feistel(positions, a, b, keys)
    outside = np.flatnonzero(image >= size)
    while outside.size:
        image[outside] = _feistel(image[outside], a, b, keys[outside])
        outside = outside[image[outside] >= size]
    return image


def rows(
    seed: int, first_row: int, n_rows: int, sizes: Sequence[int], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The `n_rows` rows of training from `first_row` on: (source int64 [n_rows], sequence int64 [n_rows]).

    `sizes`: sequences in each source; `weights`: its share of the rows, up to a factor. See `rows_at`.
    """
    return rows_at(seed, first_row + np.arange(n_rows, dtype=np.int64), sizes, weights)


def rows_at(
    seed: int, numbers: np.ndarray, sizes: Sequence[int], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The rows numbered in `numbers` int64 [n]: (source int64 [n], sequence int64 [n]).

    In every epoch of a source each of its sequences comes exactly once, in an order of that epoch's own.
    """
    source, epoch, position = positions_at(seed, numbers, sizes, weights)
    sequence = np.empty_like(position)
    for number in np.unique(source):
        of_source = source == number
        keys = _mix(
            np.uint64(_key(seed, _SEQUENCE_KEY, int(number))) ^ epoch[of_source].astype(np.uint64)
        )
        sequence[of_source] = permute(position[of_source], sizes[number], keys)
    return source, sequence


def positions_at(
    seed: int, numbers: np.ndarray, sizes: Sequence[int], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(source, epoch of that source, position in the epoch) of the rows numbered in `numbers`, all int64 [n].

    A source's positions ascend with the row number, without a gap. ValueError if a source with a weight is
    empty.
    """
    if len(sizes) != len(weights) or any(
        weight and not size for size, weight in zip(sizes, weights, strict=True)
    ):
        raise ValueError(
            f"sources of sizes {list(sizes)} cannot be drawn with weights {list(weights)}"
        )
    slot_source, slot_rank, shares = _pattern(seed, tuple(weights))
    block, slot = np.divmod(np.asarray(numbers, np.int64), MIXTURE_BLOCK)
    source = slot_source[slot]
    epoch, position = np.divmod(
        block * shares[source] + slot_rank[slot], np.asarray(sizes, np.int64)[source]
    )
    return source, epoch, position


def slot_counts(weights: Sequence[float], n_slots: int) -> np.ndarray:
    """int64 [n_sources] that sum to `n_slots`, in proportion to `weights` (largest remainders).

    Every source with a weight gets at least one slot, however small its weight; `n_slots` must allow that.
    """
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"weights {weights.tolist()} are not shares")
    exact = weights / weights.sum() * n_slots
    counts = np.maximum(np.floor(exact), weights > 0).astype(np.int64)
    while (missing := n_slots - counts.sum()) != 0:
        # One slot at a time to (or from) whoever is furthest below (above) its exact share.
        step = np.sign(missing)
        movable = weights > 0 if step > 0 else counts > 1
        counts[np.argmax(np.where(movable, step * (exact - counts), -np.inf))] += step
    return counts


@functools.lru_cache(maxsize=8)
def _pattern(seed: int, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mixture's block: sources and ranks among their source's slots, int64 [MIXTURE_BLOCK], and shares.

    Slot i of a source's c slots falls at random within the i-th of c equal stretches of the block. So every
    batch, not only the block, is close to the shares, and no source beats against the batch size.
    """
    counts = slot_counts(weights, MIXTURE_BLOCK)
    source = np.repeat(np.arange(len(weights)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    jitter = (
        _mix(np.uint64(_key(seed, _PATTERN_KEY, 0)) ^ np.arange(MIXTURE_BLOCK, dtype=np.uint64))
        / 2.0**64
    )
    order = np.argsort((rank + jitter) / counts[source], kind="stable")
    return source[order], rank[order], counts


def _key(seed: int, *words: int) -> int:
    """64 bits for one use of `seed`."""
    key = _mix(np.array([seed & _MASK], np.uint64))
    for word in words:
        key = _mix(key ^ np.uint64(word * _GOLDEN & _MASK))
    return int(key[0])


def _mix(bits: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit of the input moves every bit of the output."""
    bits = np.atleast_1d(bits) + np.uint64(_GOLDEN)
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return bits ^ bits >> np.uint64(31)


def _feistel(cells: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    """One pass over cells uint64 [n] of the rectangle a × b: a hash of each half shifts the other."""
    wide, tall = np.uint64(a), np.uint64(b)
    high, low = cells // tall, cells % tall
    for number in range(_N_ROUNDS):
        round_keys = keys + np.uint64(number * _GOLDEN & _MASK)
        if number % 2:
            low = (
                low + (_mix(high ^ round_keys) >> np.uint64(32)) * tall // np.uint64(1 << 32)
            ) % tall
        else:
            high = (
                high + (_mix(low ^ round_keys) >> np.uint64(32)) * wide // np.uint64(1 << 32)
            ) % wide
    return high * tall + low

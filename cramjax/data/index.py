"""Computes which sequence a row of training reads, from the seed and the row's number alone.

NumPy only, and no files. A fixed pattern of exact shares turns a row number into a source. A
pseudo-random permutation, new in every epoch of the source, turns it into a sequence of that
source. Nothing is stored: any row costs the same, a run resumes at any row, and processes agree
without communicating.

The permutation is a Feistel network over Z_a × Z_b with cycle walking (Black and Rogaway, "Ciphers
with arbitrary finite domains", CT-RSA 2002). Its round function is the finaliser of SplitMix64
(Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

MIXTURE_BLOCK = 1 << 16
"""Rows over which the shares of a mixture are exact: weights are honoured to 1/65536."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
# 6 rounds suffice from a few dozen sequences on; 12 also make the smallest sizes close to uniform.
_N_ROUNDS = 12
_PATTERN_KEY, _SEQUENCE_KEY = 1, 2


def permute(positions: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """Apply the permutation of [0, size) that `key` picks; a bijection for every key and size.

    Args:
        positions: uint64 [n], each below `size`.
        size: From 1 to 2**62.
        key: A number of up to 64 bits, or uint64 [n] with one for each position.

    Returns:
        The images of the positions, uint64 [n].

    Raises:
        ValueError: if the size or a position is outside its range.
    """
    positions = np.asarray(positions, np.uint64)
    if not 0 < size <= 1 << 62:
        raise ValueError(f"size {size} is outside [1, 2**62]")
    if positions.size and positions.max() >= size:
        raise ValueError(f"position {positions.max()} is not below the size {size}")
    keys = np.broadcast_to(np.asarray(key, np.uint64), positions.shape)

    # The rectangle a × b just covers [0, size): at most a - 1 of its cells lie outside, so walks
    # are rare.
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    image = _feistel(positions, a, b, keys)

    # Cycle walking: an image outside is permuted again until it is inside.
    outside = np.flatnonzero(image >= size)
    while outside.size:
        image[outside] = _feistel(image[outside], a, b, keys[outside])
        outside = outside[image[outside] >= size]
    return image


def rows_at(
    seed: int, numbers: np.ndarray, sizes: Sequence[int], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the sequences of the rows numbered in `numbers`.

    In every epoch of a source each of its sequences comes exactly once, in an order of its own.

    Args:
        seed: Seed of the order.
        numbers: Row numbers, int64 [n].
        sizes: Sequences in each source.
        weights: Share of each source in the rows, up to a factor.

    Returns:
        source int64 [n] and sequence int64 [n].
    """
    source, epoch, position = positions_at(seed, numbers, sizes, weights)
    sequence = np.empty_like(position)
    for number in np.unique(source):
        is_of_source = source == number
        source_key = np.uint64(_key(seed, _SEQUENCE_KEY, int(number)))
        epoch_keys = _mix(source_key ^ epoch[is_of_source].astype(np.uint64))
        sequence[is_of_source] = permute(position[is_of_source], sizes[number], epoch_keys)
    return source, sequence


def positions_at(
    seed: int, numbers: np.ndarray, sizes: Sequence[int], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find source, epoch and position in that epoch of the rows numbered in `numbers`.

    A source's positions ascend with the row number, without a gap. See `rows_at` for the
    arguments.

    Returns:
        source, epoch of that source, and position in the epoch, each int64 [n].

    Raises:
        ValueError: if a source with a weight is empty.
    """
    pairs = zip(sizes, weights, strict=False)
    if len(sizes) != len(weights) or any(weight and not size for size, weight in pairs):
        raise ValueError(
            f"sources of sizes {list(sizes)} cannot be drawn with weights {list(weights)}"
        )

    slot_source, slot_rank, shares = _pattern(seed, tuple(weights))
    block, slot = np.divmod(np.asarray(numbers, np.int64), MIXTURE_BLOCK)
    source = slot_source[slot]

    # How many rows of this source come before, over all its epochs.
    n_before = block * shares[source] + slot_rank[slot]
    epoch, position = np.divmod(n_before, np.asarray(sizes, np.int64)[source])
    return source, epoch, position


def slot_counts(weights: Sequence[float], n_slots: int) -> np.ndarray:
    """Divide `n_slots` in proportion to `weights`, by largest remainders.

    Args:
        weights: At least 0, with a sum above 0.
        n_slots: At least the number of weights above 0.

    Returns:
        int64 [n_sources] that sum to `n_slots`; at least 1 for each weight above 0.

    Raises:
        ValueError: if the weights are no shares.
    """
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise ValueError(f"weights {shares.tolist()} are not shares")

    exact = shares / shares.sum() * n_slots
    counts = np.maximum(np.floor(exact), shares > 0).astype(np.int64)
    while (missing := n_slots - counts.sum()) != 0:
        # One slot at a time, to the source furthest below its exact share, or from the one
        # furthest above.
        step = np.sign(missing)
        movable = shares > 0 if step > 0 else counts > 1
        counts[np.argmax(np.where(movable, step * (exact - counts), -np.inf))] += step
    return counts


@functools.lru_cache(maxsize=8)
def _pattern(seed: int, weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out one block of a mixture.

    Slot i of a source's c slots falls at random within the i-th of c equal stretches of the block.
    So every batch is close to the shares, not only the block, and no source beats against the
    batch size.

    Returns:
        The source of each slot and its rank among the source's slots, both int64 [MIXTURE_BLOCK],
        and the slots of each source, int64 [n_sources].
    """
    counts = slot_counts(weights, MIXTURE_BLOCK)
    source = np.repeat(np.arange(len(weights)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])

    key = np.uint64(_key(seed, _PATTERN_KEY, 0))
    jitter = _mix(key ^ np.arange(MIXTURE_BLOCK, dtype=np.uint64)) / 2.0**64
    order = np.argsort((rank + jitter) / counts[source], kind="stable")
    return source[order], rank[order], counts


def _key(seed: int, *words: int) -> int:
    """Derive 64 bits from `seed` for one use of it."""
    key = _mix(np.array([seed & _MASK], np.uint64))
    for word in words:
        key = _mix(key ^ np.uint64(word * _GOLDEN & _MASK))
    return int(key[0])


def _mix(bits: np.ndarray | np.uint64) -> np.ndarray:
    """Apply a bijection of uint64 in which every input bit changes every output bit."""
    mixed = np.atleast_1d(bits) + np.uint64(_GOLDEN)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)


def _feistel(cells: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    """Pass once over the rectangle a × b: in turn, a hash of each half of a cell shifts the other.

    Args:
        cells: uint64 [n], each below a * b.
        a: Number of rows.
        b: Number of columns.
        keys: uint64 [n].
    """
    n_rows, n_columns = np.uint64(a), np.uint64(b)
    row, column = cells // n_columns, cells % n_columns
    for number in range(_N_ROUNDS):
        round_keys = keys + np.uint64(number * _GOLDEN & _MASK)
        if number % 2:
            column = (column + _scaled(row ^ round_keys, n_columns)) % n_columns
        else:
            row = (row + _scaled(column ^ round_keys, n_rows)) % n_rows
    return row * n_columns + column


def _scaled(bits: np.ndarray, size: np.uint64) -> np.ndarray:
    """Hash uint64 [n] to [0, size): the high half of the hash, as a fraction of 2**32."""
    return (_mix(bits) >> np.uint64(32)) * size // np.uint64(1 << 32)

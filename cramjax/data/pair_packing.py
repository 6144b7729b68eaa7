"""Decides which pairs share a row.

That follows from their lengths and numbers alone: the same for every seed and on every machine.
Windows of pairs that a permutation brings together are packed one by one, the longest pair first,
each into the fullest row that has room (best fit, decreasing). Nothing is stored. 5 million pairs
take seconds.
"""

from __future__ import annotations

import numpy as np

from cramjax.data import index

# Rows of a window: its last rows are not full, and each row is tried for each pair.
_WINDOW_ROWS = 48
_MOST_PAIRS = 4096
# Windows that are packed together: what they work on stays in a cache.
_WINDOWS = 256
_KEY = 0


def pack(lengths: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put pairs into rows.

    Args:
        lengths: int32 [n, 2], tokens of both sides, at most `limits`.
        limits: int32 [2], room of a row.

    Returns:
        The pairs of all rows one after the other, int64 [n], and the place behind each row's last
        one, int64 [n_rows].
    """
    n_pairs = len(lengths)
    if not n_pairs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    shares = lengths / limits
    a_row = 1 / max(shares.mean(axis=0))
    window = int(np.clip(_WINDOW_ROWS * a_row, 1, _MOST_PAIRS))
    n_windows = -(-n_pairs // window)

    # Neighbours of a corpus do not come together: each window is a fair sample.
    shuffled = index.permute(np.arange(n_pairs, dtype=np.uint64), n_pairs, _KEY).astype(np.int64)
    window_of = np.arange(n_pairs) // window
    by_size = np.lexsort((-shares[shuffled].max(axis=1), window_of))
    order = shuffled[by_size]

    rows = np.empty(n_pairs, np.int64)
    n_before = 0
    for start in range(0, n_windows, _WINDOWS):
        first, last = start * window, min((start + _WINDOWS) * window, n_pairs)
        n_own = -(-(last - first) // window)
        # Pairs of no tokens fill up the last window.
        own = np.zeros((n_own * window, 2), np.int32)
        own[: last - first] = lengths[order[first:last]]
        bins, n_bins = _best_fit(own.reshape(n_own, window, 2), limits)
        # Each window's rows come behind those of the one before.
        numbers = bins + (np.cumsum(n_bins) - n_bins)[:, None] + n_before
        rows[first:last] = numbers.reshape(-1)[: last - first]
        n_before += int(n_bins.sum())

    by_row = np.argsort(rows, kind="stable")
    return order[by_row], np.cumsum(np.bincount(rows, minlength=n_before))


def _best_fit(sizes: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put the items of each window, in order, into the fullest bin of the window with room.

    Args:
        sizes: int32 [windows, items, 2]; items without a size go to the first bin.
        limits: int32 [2].

    Returns:
        The bin of each item, int64 [windows, items], and the bins of each window, int64 [windows].
    """
    n_windows, n_items, _ = sizes.shape
    windows = np.arange(n_windows)
    # Room of both sides, and their sum in shares: the fullest bin has the least.
    free = [np.full((n_windows, _WINDOW_ROWS), limit, np.int32) for limit in limits]
    left = np.full((n_windows, _WINDOW_ROWS), 2.0, np.float32)
    bins = np.zeros((n_windows, n_items), np.int64)
    n_open = np.zeros(n_windows, np.int64)

    for item in range(n_items):
        size = sizes[:, item]
        has_room = (free[0] >= size[:, :1]) & (free[1] >= size[:, 1:])
        best = np.where(has_room, left, np.float32(3.0)).argmin(axis=1)
        if not has_room[windows, best].all():
            free = [_wider(room, limit) for room, limit in zip(free, limits, strict=True)]
            left = _wider(left, 2.0)
            has_room = (free[0] >= size[:, :1]) & (free[1] >= size[:, 1:])
            best = np.where(has_room, left, np.float32(3.0)).argmin(axis=1)

        is_there = size[:, 0] > 0
        best[~is_there] = 0
        for side, room in enumerate(free):
            room[windows, best] -= size[:, side]
        left[windows, best] = free[0][windows, best] / np.float32(limits[0])
        left[windows, best] += free[1][windows, best] / np.float32(limits[1])
        bins[:, item] = best
        n_open = np.maximum(n_open, np.where(is_there, best + 1, 0))
    return bins, n_open


def _wider(room: np.ndarray, value: float) -> np.ndarray:
    """Return twice as many bins; the new ones are empty."""
    return np.concatenate([room, np.full_like(room, value)], axis=1)

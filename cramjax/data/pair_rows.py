"""Puts pairs side by side in rows of one shape, and reads such rows.

A row has the sources of its pairs one after the other, padding, their targets in the same order,
and padding. [SEP] ends every source and every target, so a row shows which belongs to which.

Which pairs share a row follows from their lengths and numbers alone: the same for every seed and on
every machine. Windows of pairs that a permutation brings together are packed one by one, the
longest pair first, each into the fullest row that has room (best fit, decreasing). Nothing is
stored. 5 million pairs take seconds.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from cramjax.config.pairs import PairShape
from cramjax.data import index

_LOG = logging.getLogger("cramjax")

# Rows of a window: its last rows are not full, and each row is tried for each pair.
_WINDOW_ROWS = 48
_MOST_PAIRS = 4096
# Windows that are packed together: what they work on stays in a cache.
_WINDOWS = 256
_KEY = 0
_CHUNK_TOKENS = 1 << 22


class DamagedPairs(ValueError):
    """A shard does not hold pairs; the argument is its number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs of one source in one split.

    Attributes:
        shards: The tokens of each shard.
        first: Number of the first pair of each shard, and of the first one beyond, int64.
        starts: Place of the first token of each pair's source in its shard, int64 [n].
        lengths: Tokens of source and target, each with its [SEP], int32 [n, 2].
    """

    shards: tuple[np.ndarray, ...]
    first: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def find(cls, shards: Sequence[np.ndarray], n_documents: Sequence[int], sep_id: int) -> Pairs:
        """Find the pairs in shards by the [SEP] after each side.

        Args:
            shards: The tokens of each shard.
            n_documents: Pairs in each.
            sep_id: The id of [SEP].

        Raises:
            DamagedPairs: if a shard holds another number of sides.
        """
        starts = [np.empty(0, np.int64)]
        lengths = [np.empty((0, 2), np.int32)]
        for number, (tokens, n_pairs) in enumerate(zip(shards, n_documents, strict=True)):
            ends = _places(tokens, sep_id)
            if len(ends) != 2 * n_pairs or (n_pairs and ends[-1] != len(tokens) - 1):
                raise DamagedPairs(number)
            # [n_pairs, 2]: the first token behind each side.
            behind = ends.reshape(-1, 2) + 1
            of_shard = np.concatenate([[0], behind[:-1, 1]]) if n_pairs else starts[0]
            starts.append(of_shard)
            targets = behind[:, 1] - behind[:, 0]
            lengths.append(np.stack([behind[:, 0] - of_shard, targets], 1).astype(np.int32))

        return cls(
            shards=tuple(shards),
            first=np.concatenate([[0], np.cumsum(np.asarray(n_documents, np.int64))]),
            starts=np.concatenate(starts),
            lengths=np.concatenate(lengths),
        )

    def __len__(self) -> int:
        return len(self.starts)

    def sides(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of source and target of a pair, without the [SEP] after each."""
        tokens = self.shards[int(np.searchsorted(self.first, number, "right")) - 1]
        start = self.starts[number]
        middle, end = start + np.cumsum(self.lengths[number], dtype=np.int64)
        return tokens[start : middle - 1], tokens[middle : end - 1]

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """Count how often each id stands in the targets, [SEP] included: int64 [vocab_size]."""
        counts = np.zeros(vocab_size, np.int64)
        for number, tokens in enumerate(self.shards):
            of_shard = slice(self.first[number], self.first[number + 1])
            # +1 where a target begins, -1 behind it.
            change = np.zeros(len(tokens) + 1, np.int8)
            begin = self.starts[of_shard] + self.lengths[of_shard, 0]
            change[begin] += 1
            change[begin + self.lengths[of_shard, 1]] -= 1
            is_target = np.cumsum(change[:-1], dtype=np.int8).astype(bool)
            counts += np.bincount(tokens[is_target], minlength=vocab_size)[:vocab_size]
        return counts


def _places(tokens: np.ndarray, token: int) -> np.ndarray:
    """Return the places of a token, int64 [n]."""
    found = [np.empty(0, np.int64)]
    for start in range(0, len(tokens), _CHUNK_TOKENS):
        found.append(np.flatnonzero(tokens[start : start + _CHUNK_TOKENS] == token) + start)
    return np.concatenate(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRows:
    """Pairs in rows.

    Attributes:
        pairs: The pairs.
        shape: The form of a row.
        order: The pairs of all rows one after the other, int64 [n].
        ends: The place in `order` behind each row's last pair, int64 [n_rows].
        n_long: Pairs with a side of more tokens than a row has, which are cut or left out.
    """

    pairs: Pairs
    shape: PairShape
    order: np.ndarray
    ends: np.ndarray
    n_long: int

    @classmethod
    def of(cls, pairs: Pairs, shape: PairShape) -> PairRows:
        """Put all pairs into rows."""
        limits = np.array([shape.n_inputs, shape.n_targets], np.int32)
        is_long = np.any(pairs.lengths > limits, axis=1)
        taken = np.arange(len(is_long))
        if not shape.cuts:
            taken = np.flatnonzero(~is_long)
        order, ends = pack(np.minimum(pairs.lengths[taken], limits), limits)
        return cls(
            pairs=pairs,
            shape=shape,
            order=taken[order],
            ends=ends,
            n_long=int(is_long.sum()),
        )

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.ends)

    def filled(self) -> tuple[float, float]:
        """Return the shares of the rows' inputs and targets that are no padding."""
        limits = np.array([self.shape.n_inputs, self.shape.n_targets], np.int32)
        used = np.minimum(self.pairs.lengths[self.order], limits).sum(axis=0, dtype=np.int64)
        inputs, targets = used / np.maximum(1, self.n_rows * limits.astype(np.int64))
        return float(inputs), float(targets)

    def pairs_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of rows, int64 [n], and how many each row has, int64 [len(rows)]."""
        begins = np.where(rows > 0, self.ends[rows - 1], 0)
        counts = self.ends[rows] - begins
        return self.order[_ranges(begins, counts)], counts

    def read(self, rows: np.ndarray, *, sep_id: int, pad_id: int, dtype: np.dtype) -> np.ndarray:
        """Return rows by number: tokens [len(rows), row_tokens].

        Args:
            rows: int64 [n]; a number may come twice.
            sep_id: The id that ends a side that is cut.
            pad_id: The id of padding.
            dtype: Type of the tokens.

        Raises:
            IndexError: for a number outside [0, n_rows).
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= self.n_rows):
            raise IndexError(f"row number outside [0, {self.n_rows})")
        chosen, counts = self.pairs_of(rows)
        shape = self.shape
        tokens = np.full((len(rows), shape.row_tokens), pad_id, dtype)
        flat = tokens.reshape(-1)
        row_starts = np.repeat(np.arange(len(rows)) * shape.row_tokens, counts)

        sources = self.pairs.starts[chosen]
        of_side = (
            (sources, shape.n_inputs, 0),
            (sources + self.pairs.lengths[chosen, 0], shape.n_targets, shape.n_inputs),
        )
        for side, (starts, limit, offset) in enumerate(of_side):
            lengths = np.minimum(self.pairs.lengths[chosen, side], limit).astype(np.int64)
            places = row_starts + offset + _before(lengths, counts)
            self._copy(flat, places, chosen, starts, lengths)
            flat[places + lengths - 1] = sep_id
        return tokens

    def _copy(
        self,
        flat: np.ndarray,
        places: np.ndarray,
        chosen: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
    ) -> None:
        """Copy `lengths` tokens from `starts` of the chosen pairs' shards to `places`."""
        shard_of = np.searchsorted(self.pairs.first, chosen, "right") - 1
        for number in np.unique(shard_of):
            own = shard_of == number
            to, origin = _ranges(places[own], lengths[own]), _ranges(starts[own], lengths[own])
            flat[to] = self.pairs.shards[number][origin]


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return starts[i], starts[i] + 1, … (counts[i] numbers) for all i, one after the other."""
    firsts = np.cumsum(counts) - counts
    return np.repeat(starts - firsts, counts) + np.arange(counts.sum())


def _before(lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the sum of the lengths before each item in its group of `counts` items."""
    before = np.cumsum(lengths) - lengths
    firsts = np.cumsum(counts) - counts
    return before - np.repeat(before[firsts[counts > 0]], counts[counts > 0])


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

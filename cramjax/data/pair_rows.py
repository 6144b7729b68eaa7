"""Finds the pairs in shards of tokens, and reads rows that hold several of them.

A row has the sources of its pairs one after the other, padding, their targets in the same order,
and padding. [SEP] ends every source and every target, so a row shows which belongs to which.
`pair_packing` decides which pairs share a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cramjax.config.pairs import PairShape
from cramjax.data.pair_packing import pack

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

"""Which documents came before: exact duplicates by hash, near duplicates by MinHash, both in bounded memory.

Also the hashes by which documents are held out. MinHash signatures come from the `rensa` library; the index over
them is here because the library's own costs some 1,000 bytes a document, this one 250.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable

import numpy as np

N_HASHES = 64
"""MinHash values in a signature: the standard error of a similarity of 0.8 is 0.05."""

_SHINGLE_WORDS = 5
_SIGNATURE_WORDS = (
    1 << 16
)  # of a longer document the beginning stands for the whole, so memory is bounded
_SEED = 1
_RECALL = 0.97
_LOG = logging.getLogger("cramjax")


def document_hashes(text: str) -> tuple[int, int]:
    """Two independent 64-bit hashes of `text`: the first tells documents apart, the second splits them.

    The same on every machine.
    """
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def is_heldout(split_hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which of the documents are held out, bool [n]: a function of each hash (uint64 [n]) alone."""
    return split_hashes < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))


class SeenHashes:
    """A set of 64-bit hashes in 8 bytes each (and at most 300 MB of recent ones besides)."""

    _MAX_RECENT = 1 << 22
    _N_BUCKETS = 16

    def __init__(self):
        self._recent: set[int] = set()
        self._sorted = [np.empty(0, np.uint64) for _ in range(self._N_BUCKETS)]

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add hashes uint64 [n] in order; returns bool [n], true where one had not been there before."""
        new = ~self._in_sorted(hashes)
        for index in np.flatnonzero(new).tolist():
            value = int(hashes[index])
            if value in self._recent:
                new[index] = False
            else:
                self._recent.add(value)
        if len(self._recent) > self._MAX_RECENT:
            self._merge_recent()
        return new

    def _in_sorted(self, hashes: np.ndarray) -> np.ndarray:
        found = np.zeros(len(hashes), bool)
        buckets = self._bucket(hashes)
        for number, known in enumerate(self._sorted):
            if len(known):
                chosen = np.flatnonzero(buckets == number)
                place = np.minimum(np.searchsorted(known, hashes[chosen]), len(known) - 1)
                found[chosen] = known[place] == hashes[chosen]
        return found

    def _merge_recent(self) -> None:
        recent = np.fromiter(self._recent, np.uint64, len(self._recent))
        self._recent.clear()
        buckets = self._bucket(recent)
        # Bucket by bucket, so that merging needs a sixteenth of the set as working memory.
        for number in range(self._N_BUCKETS):
            merged = np.concatenate([self._sorted[number], recent[buckets == number]])
            merged.sort()
            self._sorted[number] = merged

    def _bucket(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(60)).astype(np.int64)


def signatures(texts: Iterable[str]) -> np.ndarray:
    """MinHash signatures of the five-word shingles of each text, uint16 [n, N_HASHES].

    Two signatures agree at a share of places that estimates the Jaccard similarity of the texts. (Of each hash the
    low 16 bits are kept: Li and König, arXiv 0910.3349; at 16 bits their bias is under 0.0001.)
    """
    import rensa

    rows = rensa.RMinHash.digest_matrix_from_token_sets(
        [_shingles(text) for text in texts], N_HASHES, _SEED
    ).to_rows()
    return np.array(rows, np.uint32).reshape(-1, N_HASHES).astype(np.uint16)


def _shingles(text: str) -> list[str]:
    words = text.lower().split(maxsplit=_SIGNATURE_WORDS)[:_SIGNATURE_WORDS]
    n_shingles = max(1, len(words) - _SHINGLE_WORDS + 1)
    return [" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(n_shingles)]


class NearDuplicates:
    """Finds documents whose estimated Jaccard similarity to an earlier, kept one is at least `threshold`.

    Locality-sensitive hashing: a signature is cut into bands, and only documents that agree in a whole band are
    compared. A slot of a band's table remembers the last document that fell there, which loses few pairs as a true one
    agrees in many bands. Beyond `capacity` documents (250 bytes each) new ones are compared but not remembered.
    """

    def __init__(self, threshold: float, capacity: int = 1 << 22):
        self._threshold, self._capacity = threshold, capacity
        self._rows = max([2] + [rows for rows in (4, 8) if _recall(threshold, rows) >= _RECALL])
        self._bands = np.arange(N_HASHES // self._rows)
        self._signatures = np.empty((1 << 10, N_HASHES), np.uint16)
        self._n = 0
        self._tables = self._empty_tables()

    def add(self, signatures: np.ndarray) -> np.ndarray:
        """Add documents by their signatures uint16 [n, N_HASHES], in order; bool [n], true where one is new."""
        new = np.ones(len(signatures), bool)
        for index, signature in enumerate(signatures):
            slots = self._slots(signature)
            candidates = self._tables[self._bands, slots]
            candidates = candidates[candidates >= 0]
            if len(candidates):
                agreement = (self._signatures[candidates] == signature).mean(axis=1)
                if agreement.max() >= self._threshold:
                    new[index] = False
                    continue
            if self._n < self._capacity:
                self._remember(signature)
        return new

    def _remember(self, signature: np.ndarray) -> None:
        if self._n == len(self._signatures):
            self._grow()
        self._signatures[self._n] = signature
        self._tables[self._bands, self._slots(signature)] = self._n
        self._n += 1
        if self._n == self._capacity:
            _LOG.warning(
                "data.dedup_near: %d documents are remembered, the limit of memory; later ones are compared with these only",
                self._n,
            )

    def _grow(self) -> None:
        self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._tables = self._empty_tables()
        for start in range(0, self._n, 1 << 14):
            block = slice(start, min(start + (1 << 14), self._n))
            # In order, and numpy keeps the last of equal indices: the same tables as if they had been this large.
            self._tables[self._bands, self._slots(self._signatures[block])] = np.arange(
                block.start, block.stop
            )[:, None]

    def _empty_tables(self) -> np.ndarray:
        return np.full((len(self._bands), 2 * len(self._signatures)), -1, np.int32)

    def _slots(self, signatures: np.ndarray) -> np.ndarray:
        """The slot in each band's table, int64 [..., n_bands], of signatures uint16 [..., N_HASHES]."""
        banded = signatures.reshape(*signatures.shape[:-1], len(self._bands), self._rows).astype(
            np.uint64
        )
        keys = np.zeros(banded.shape[:-1], np.uint64)
        for row in range(self._rows):
            keys = (keys ^ banded[..., row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        return (keys % np.uint64(self._tables_size())).astype(np.int64)

    def _tables_size(self) -> int:
        return 2 * len(self._signatures)


def _recall(similarity: float, rows: int) -> float:
    """Probability that two signatures of that similarity agree in at least one band of `rows` values."""
    return 1 - (1 - similarity**rows) ** (N_HASHES // rows)

"""Finds documents that came before: exact duplicates by hash, near duplicates by MinHash.

Both work in bounded memory. The hashes by which documents are held out are here too. MinHash
signatures come from the `rensa` library; the index over them is ours, because the library's needs
about 1,000 bytes per document and this one 250.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable

import numpy as np

N_HASHES = 64
"""MinHash values in a signature: the standard error of a similarity of 0.8 is 0.05."""

_SHINGLE_WORDS = 5
# Chinese, Japanese, Thai and DNA have few spaces: a clause or a read is one word. Words of no
# language are longer than this on average. Ten characters are about five words of Chinese.
_LONGEST_WORDS = 15
_SHINGLE_CHARS = 10
# The beginning of a longer document stands for the whole, so that memory is bounded.
_SIGNATURE_WORDS = 1 << 16
_SIGNATURE_CHARS = 1 << 19
_SEED = 1
# Bands are as long as they can be with this chance of comparing a pair at the threshold.
_RECALL = 0.97
# Signatures that enter grown tables together.
_GROW_BLOCK = 1 << 14
_LOG = logging.getLogger("cramjax")


def document_hashes(text: str) -> tuple[int, int]:
    """Return two independent 64-bit hashes of `text`, the same on every machine.

    The first tells documents apart, the second splits them into training and held-out.
    """
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def is_heldout(split_hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Decide from each document's hash alone if it is held out.

    Args:
        split_hashes: The second of `document_hashes`, uint64 [n].
        fraction: Share of documents to hold out, in [0, 1].

    Returns:
        bool [n].
    """
    return split_hashes < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))


class SeenHashes:
    """A set of 64-bit hashes: 8 bytes each, and at most 300 MB for recent ones.

    Old hashes are in sorted arrays, one for each value of the top 4 bits; recent ones are in a
    Python set, which is fast to add to but large.
    """

    _MAX_RECENT = 1 << 22
    _N_BUCKETS = 16

    def __init__(self):
        self._recent: set[int] = set()
        self._sorted = [np.empty(0, np.uint64) for _ in range(self._N_BUCKETS)]

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Add hashes uint64 [n] in order.

        Returns:
            bool [n], true where a hash is new.
        """
        is_new = ~self._in_sorted(hashes)
        for index in np.flatnonzero(is_new).tolist():
            value = int(hashes[index])
            if value in self._recent:
                is_new[index] = False
            else:
                self._recent.add(value)

        if len(self._recent) > self._MAX_RECENT:
            self._merge_recent()
        return is_new

    def _in_sorted(self, hashes: np.ndarray) -> np.ndarray:
        """Return bool [n], true where a hash is in the sorted arrays."""
        is_known = np.zeros(len(hashes), bool)
        buckets = self._bucket(hashes)
        for number, known in enumerate(self._sorted):
            if len(known):
                chosen = np.flatnonzero(buckets == number)
                place = np.minimum(np.searchsorted(known, hashes[chosen]), len(known) - 1)
                is_known[chosen] = known[place] == hashes[chosen]
        return is_known

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
    """Compute MinHash signatures of the shingles of each text.

    A shingle is five words, or ten characters in text without spaces.

    Two signatures agree at a share of places that estimates the Jaccard similarity of the texts.
    The low 16 bits of each hash are kept (Li and König, arXiv 0910.3349); at 16 bits their bias
    is under 0.0001.

    Returns:
        uint16 [n, N_HASHES].
    """
    # A compiled module without types.
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    shingles = [_shingles(text) for text in texts]
    matrix = RMinHash.digest_matrix_from_token_sets(shingles, N_HASHES, _SEED)
    hashes = np.array(matrix.to_rows(), np.uint32)
    return hashes.reshape(-1, N_HASHES).astype(np.uint16)


def _shingles(text: str) -> list[str]:
    """Return runs of words, or runs of characters where there are few spaces."""
    text = text.lower()
    units = text[:_SIGNATURE_CHARS].split(maxsplit=_SIGNATURE_WORDS)[:_SIGNATURE_WORDS]
    size, joint = _SHINGLE_WORDS, " "
    if sum(map(len, units)) > _LONGEST_WORDS * len(units):
        units = "".join(units)
        size, joint = _SHINGLE_CHARS, ""
    n_shingles = max(1, len(units) - size + 1)
    return [joint.join(units[start : start + size]) for start in range(n_shingles)]


class NearDuplicates:
    """Finds documents that are similar to an earlier one that was kept.

    Locality-sensitive hashing: a signature is cut into bands, and only documents that agree in a
    whole band are compared. A slot of a band's table remembers the last document that fell there.
    That loses few pairs, since a true one agrees in many bands.
    """

    def __init__(self, threshold: float, capacity: int = 1 << 22):
        """Start with no documents.

        Args:
            threshold: Estimated Jaccard similarity from which a document is a near duplicate.
            capacity: Documents to remember, 250 bytes each; later ones are compared with these,
                but not remembered.
        """
        self._threshold = threshold
        self._capacity = capacity
        # Longer bands mean fewer comparisons.
        lengths = [n_rows for n_rows in (4, 8) if _recall(threshold, n_rows) >= _RECALL]
        self._band_rows = max([2, *lengths])
        self._bands = np.arange(N_HASHES // self._band_rows)
        self._signatures = np.empty((1 << 10, N_HASHES), np.uint16)
        self._n = 0
        self._tables = self._empty_tables()

    def add(self, signatures: np.ndarray) -> np.ndarray:
        """Add documents by their signatures, uint16 [n, N_HASHES], in order.

        Returns:
            bool [n], true where a document is new.
        """
        is_new = np.ones(len(signatures), bool)
        for index, signature in enumerate(signatures):
            candidates = self._tables[self._bands, self._slots(signature)]
            candidates = candidates[candidates >= 0]
            if len(candidates):
                agreement = (self._signatures[candidates] == signature).mean(axis=1)
                if agreement.max() >= self._threshold:
                    is_new[index] = False
                    continue

            if self._n < self._capacity:
                self._remember(signature)
        return is_new

    def _remember(self, signature: np.ndarray) -> None:
        if self._n == len(self._signatures):
            self._grow()
        self._signatures[self._n] = signature
        self._tables[self._bands, self._slots(signature)] = self._n
        self._n += 1

        if self._n == self._capacity:
            _LOG.warning(
                "data.dedup_near: %d documents are remembered, the limit of memory; later ones "
                "are compared with these only",
                self._n,
            )

    def _grow(self) -> None:
        """Double the room, and put every document into tables of the new size."""
        self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._tables = self._empty_tables()
        for start in range(0, self._n, _GROW_BLOCK):
            end = min(start + _GROW_BLOCK, self._n)
            slots = self._slots(self._signatures[start:end])
            # In order, and numpy keeps the last of equal indices: the same tables as if they had
            # been this large from the beginning.
            self._tables[self._bands, slots] = np.arange(start, end)[:, None]

    def _empty_tables(self) -> np.ndarray:
        """Return int32 [n_bands, n_slots] of -1; a slot holds the number of a document."""
        return np.full((len(self._bands), self._n_slots()), -1, np.int32)

    def _slots(self, signatures: np.ndarray) -> np.ndarray:
        """Return the slot in each band's table.

        Args:
            signatures: uint16 [..., N_HASHES].

        Returns:
            int64 [..., n_bands].
        """
        shape = (*signatures.shape[:-1], len(self._bands), self._band_rows)
        banded = signatures.reshape(shape).astype(np.uint64)

        # A multiplicative hash of the values of each band.
        keys = np.zeros(banded.shape[:-1], np.uint64)
        for row in range(self._band_rows):
            keys = (keys ^ banded[..., row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        return (keys % np.uint64(self._n_slots())).astype(np.int64)

    def _n_slots(self) -> int:
        return 2 * len(self._signatures)


def _recall(similarity: float, band_rows: int) -> float:
    """Return the probability that two signatures agree in at least one band of `band_rows` values.

    Args:
        similarity: Jaccard similarity of their documents.
        band_rows: Values in a band.
    """
    return 1 - (1 - similarity**band_rows) ** (N_HASHES // band_rows)

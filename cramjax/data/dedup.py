"""Hashes of a document: by which it is told from others, held out, and compared with others.

MinHash signatures come from the `rensa` library. `duplicates.py` compares documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

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


def band_rows(threshold: float) -> int:
    """Return how many values of a signature make a band, for near duplicates from `threshold` on.

    Documents that agree in a whole band are compared. Longer bands mean fewer comparisons.

    Args:
        threshold: Estimated Jaccard similarity.
    """
    lengths = [n_rows for n_rows in (4, 8) if _recall(threshold, n_rows) >= _RECALL]
    return max([2, *lengths])


def n_bands(threshold: float) -> int:
    """Return how many bands a signature has."""
    return N_HASHES // band_rows(threshold)


def band_keys(signatures: np.ndarray, threshold: float) -> Iterator[np.ndarray]:
    """Yield a key for each band, uint64 [n]: documents that agree in the band have the same.

    Args:
        signatures: uint16 [n, N_HASHES].
        threshold: See `band_rows`.
    """
    n_rows = band_rows(threshold)
    for start in range(0, n_bands(threshold) * n_rows, n_rows):
        # A multiplicative hash of the values.
        keys = np.zeros(len(signatures), np.uint64)
        for row in range(start, start + n_rows):
            keys = (keys ^ signatures[:, row].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        yield keys


def _recall(similarity: float, n_rows: int) -> float:
    """Return the probability that two signatures agree in at least one band of `n_rows` values.

    Args:
        similarity: Jaccard similarity of their documents.
        n_rows: Values in a band.
    """
    return 1 - (1 - similarity**n_rows) ** (N_HASHES // n_rows)

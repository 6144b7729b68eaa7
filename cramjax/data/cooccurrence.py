"""Vectors of tokens from counts of which of them stand near each other, without any training.

Two tokens' vectors are alike where both stand near the same tokens: a truncated factorisation of
positive pointwise mutual information (Levy and Goldberg, "Neural Word Embedding as Implicit Matrix
Factorization", NeurIPS 2014). Neighbours are smoothed and weighted by distance as in Levy, Goldberg
and Dagan, "Improving Distributional Similarity with Lessons Learned from Word Embeddings" (TACL
2015, section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from cramjax.errors import UserError

TOKENS_PER_ENTRY = 500
"""Tokens that are counted for each entry of the vocabulary."""
_WINDOW = 4
# A neighbour counts 1 / distance. Pairs with less than this are chance, and most of all pairs.
_LEAST_COUNT = 2.0
_SMOOTHING = 0.75
# The last directions need not be exact: they are the shortest ones.
_TOLERANCE = 0.1


def vectors(rows: np.ndarray, vocab_size: int, width: int, pad_id: int) -> np.ndarray:
    """Returns float32 [vocab_size, width], rows of length 1; 0 for tokens without neighbours.

    It is a function of its arguments, up to the rounding of the machine.

    Args:
        rows: ids [n_rows, length]; neighbours stand in the same row.
        vocab_size: entries of the vocabulary.
        width: numbers of a vector.
        pad_id: the id that is no token.

    Raises:
        UserError: if the width is not well below the size of the vocabulary, or if no two tokens
            stand near each other often enough.
    """
    if 2 * width >= vocab_size:
        raise UserError(
            f"init_embeddings=cooccurrence: {vocab_size} entries of the vocabulary have no "
            f"{width} directions to choose from; lower model.d_model, or leave the key out"
        )
    information = _mutual_information(_neighbours(rows, vocab_size, pad_id))
    if not information.nnz:
        raise UserError(
            "init_embeddings=cooccurrence: no two tokens stand near each other often enough in the "
            "training text; read more text, or leave the key out"
        )

    # The start is fixed: by default it is another one in every process.
    start = np.ones(vocab_size, np.float32)
    settings: Any = {"k": width, "which": "LA", "tol": _TOLERANCE, "v0": start}
    values, directions = scipy.sparse.linalg.eigsh(information, **settings)

    found = directions * np.maximum(values, 0)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    # What rounding leaves of an empty row has no direction.
    is_known = lengths > 1e-4 * lengths.max()
    return np.where(is_known, found / np.where(is_known, lengths, 1), 0).astype(np.float32)


def _neighbours(rows: np.ndarray, vocab_size: int, pad_id: int) -> scipy.sparse.csr_array:
    """Returns how often two tokens stand near each other, float32 [vocab, vocab], symmetric."""
    shape = (vocab_size, vocab_size)
    counts = scipy.sparse.csr_array(shape, dtype=np.float32)
    for distance in range(1, _WINDOW + 1):
        left, right = rows[:, :-distance].ravel(), rows[:, distance:].ravel()
        weights = np.where((left == pad_id) | (right == pad_id), 0, 1 / distance)
        places = (left.astype(np.int32), right.astype(np.int32))
        counts = counts + scipy.sparse.coo_array((weights.astype(np.float32), places), shape)
    return (counts + counts.T).tocsr()


def _mutual_information(counts: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Returns the positive pointwise mutual information of tokens and their neighbours."""
    of_each = np.asarray(counts.sum(axis=1))
    smoothed = of_each**_SMOOTHING
    smoothed = smoothed / smoothed.sum()

    pairs = counts.tocoo()
    is_enough = pairs.data >= _LEAST_COUNT
    tokens, others = pairs.row[is_enough], pairs.col[is_enough]
    ratios = pairs.data[is_enough] / (of_each[tokens] * smoothed[others])
    information = np.maximum(np.log(ratios), 0).astype(np.float32)

    # Smoothing tells a token from its neighbour; the vectors of both are the same.
    one_way = scipy.sparse.coo_array((information, (tokens, others)), counts.shape)
    both_ways = ((one_way + one_way.T) / 2).tocsr()
    both_ways.eliminate_zeros()
    return both_ways

"""Searches with embeddings: the cosine of two texts, and the place of the right one among all."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

CORRELATIONS = ("spearman", "pearson")
"""Metrics of pairs whose likeness people scored; the first is reported, as on STS-B."""

RANKS = ("mrr", "recall@1", "recall@10")
"""Metrics of pairs that belong together; the first is reported."""

_CHUNK = 1024
"""Searches at once."""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns float32 [n, width] with rows of length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def cosines(units: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns the cosine of each pair, float32 [pairs].

    Args:
        units: float32 [texts, width], of length 1.
        pairs: int [pairs, 2], numbers of texts.
    """
    return np.einsum("nd,nd->n", units[pairs[:, 0]], units[pairs[:, 1]])


def ranks(units: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Returns the place of each right answer in a search for it, int [pairs], from 1 on.

    The search is by cosine, over the answers of all pairs, each text once. The asking text itself
    and its other right answers are no rivals. Of equal cosines the right one comes last, so that
    embeddings that are all alike, or no numbers, find nothing.

    Args:
        units: float32 [texts, width], of length 1.
        pairs: int [pairs, 2], the numbers of an asking text and of its answer.
    """
    answers = np.unique(pairs[:, 1])
    # Asking text → columns of `answers` that are no rivals.
    exempt = collections.defaultdict(set)
    columns = np.searchsorted(answers, pairs[:, 1])
    for asking, column in zip(pairs[:, 0].tolist(), columns.tolist(), strict=True):
        exempt[asking].add(column)
    for asking in np.intersect1d(pairs[:, 0], answers).tolist():
        exempt[asking].add(int(np.searchsorted(answers, asking)))

    places = np.empty(len(pairs), int)
    for start in range(0, len(pairs), _CHUNK):
        part = pairs[start : start + _CHUNK]
        found = units[part[:, 0]] @ units[answers].T  # [part, answers]
        own = found[np.arange(len(part)), columns[start : start + _CHUNK]]
        # Written so that what is no number is a rival.
        is_rival = ~(found < own[:, None])
        for row, asking in enumerate(part[:, 0].tolist()):
            is_rival[row, list(exempt[asking])] = False
        places[start : start + _CHUNK] = 1 + is_rival.sum(axis=1)
    return places


def rank_scores(places: Sequence[int]) -> dict[str, float]:
    """Returns `RANKS` in percent: the mean of 1 / place, the shares of places up to 1 and 10."""
    found = np.asarray(places, float)
    return {
        "mrr": 100.0 * float(np.mean(1.0 / found)),
        "recall@1": 100.0 * float(np.mean(found <= 1)),
        "recall@10": 100.0 * float(np.mean(found <= 10)),
    }

"""Vectors from counts: which tokens stand near each other, and nothing else."""

import numpy as np
import pytest

from cramjax.data import cooccurrence
from cramjax.errors import UserError

PAD, VOCAB, TOPICS = 0, 60, 3


def rows_by_topic(n_rows=400, length=32):
    """Each row draws from the twenty tokens of one topic: ids that leave the same rest by three."""
    rng = np.random.default_rng(0)
    topics = rng.integers(0, TOPICS, (n_rows, 1))
    return TOPICS * rng.integers(1, VOCAB // TOPICS, (n_rows, length)) + topics


def test_tokens_that_stand_together_have_like_vectors():
    found = cooccurrence.vectors(rows_by_topic(), VOCAB, 8, PAD)
    assert found.shape == (VOCAB, 8) and found.dtype == np.float32
    seen = found[TOPICS:]
    np.testing.assert_allclose(np.linalg.norm(seen, axis=1), 1, rtol=1e-5)

    topics = np.arange(TOPICS, VOCAB) % TOPICS
    likeness = seen @ seen.T
    is_same = topics[:, None] == topics[None]
    assert likeness[is_same].min() > 0.9 and likeness[~is_same].max() < 0.1


def test_counts_are_those_of_a_plain_loop():
    rows = np.random.default_rng(1).integers(0, 7, (20, 9))
    expected = np.zeros((7, 7))
    for row in rows:
        for place, token in enumerate(row):
            for distance in range(1, 5):
                if place + distance < len(row) and PAD not in (token, row[place + distance]):
                    expected[token, row[place + distance]] += 1 / distance
                    expected[row[place + distance], token] += 1 / distance
    counts = cooccurrence._neighbours(rows, 7, PAD)
    np.testing.assert_allclose(counts.toarray(), expected, rtol=1e-5)


def test_what_stands_nowhere_has_no_vector_and_the_same_rows_give_the_same():
    rows = rows_by_topic()
    rows[rows == 4] = 7
    found = cooccurrence.vectors(rows, VOCAB, 8, PAD)
    assert not found[[PAD, 1, 2, 4]].any() and found[7].any()
    np.testing.assert_array_equal(found, cooccurrence.vectors(rows, VOCAB, 8, PAD))


def test_padding_is_no_neighbour():
    rows = rows_by_topic()
    padded = np.concatenate([rows, np.zeros_like(rows)], axis=1)
    wide, narrow = (cooccurrence.vectors(some, VOCAB, 8, PAD) for some in (padded, rows))
    np.testing.assert_allclose(wide @ wide.T, narrow @ narrow.T, atol=1e-4)


def test_a_width_near_the_vocabulary_is_refused():
    with pytest.raises(UserError, match="60 entries of the vocabulary have no 30 directions"):
        cooccurrence.vectors(rows_by_topic(), VOCAB, 30, PAD)


def test_no_pair_often_enough_is_said():
    rows = np.arange(1, 41).reshape(1, 40)
    with pytest.raises(UserError, match="no two tokens stand near each other often enough"):
        cooccurrence.vectors(rows, VOCAB, 8, PAD)

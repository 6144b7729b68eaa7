"""Exact and near duplicates, and the split by hash."""

import numpy as np
import pytest

from cramjax.data import dedup

HELDOUT_WITNESS = 3256


def test_seen_hashes_equals_a_set(monkeypatch):
    # So that most are in the sorted buckets.
    monkeypatch.setattr(dedup.SeenHashes, "_MAX_RECENT", 50)
    rng = np.random.default_rng(0)
    values = rng.choice(rng.integers(0, 2**64, 900, np.uint64), 4000)

    seen = dedup.SeenHashes()
    known = set()
    for block in np.array_split(values, 37):
        expected = []
        for value in block.tolist():
            expected.append(value not in known)
            known.add(value)
        assert seen.add(block).tolist() == expected


def test_document_hashes_are_fixed_and_differ():
    assert dedup.document_hashes("a document") == dedup.document_hashes("a document")
    # Written down once: another machine or version must split alike.
    assert dedup.document_hashes("a document")[1] % 10_000 == HELDOUT_WITNESS

    hashes = set()
    for number in range(1000):
        hashes.update(dedup.document_hashes(f"document {number}"))
    assert len(hashes) == 2000


def test_heldout_share():
    splits = np.array(
        [dedup.document_hashes(f"document {number}")[1] for number in range(20_000)], np.uint64
    )
    for fraction in (0.0, 0.01, 0.3):
        assert abs(dedup.is_heldout(splits, fraction).mean() - fraction) < 0.01
    assert not dedup.is_heldout(splits, 0.0).any()
    # What is held out at one fraction is held out at any higher one.
    assert not (dedup.is_heldout(splits, 0.01) & ~dedup.is_heldout(splits, 0.02)).any()


def texts_of_similarity(rng, n, share):
    """Make `n` pairs of texts of 300 words, with the first `share` of the words in common."""
    words = rng.integers(0, 50_000, (n, 2, 300)).astype(str)
    n_same = round(300 * share)
    words[:, 1, :n_same] = words[:, 0, :n_same]
    return [" ".join(pair[0]) for pair in words], [" ".join(pair[1]) for pair in words]


@pytest.mark.parametrize(
    "share, low, high", [(0.97, 0.99, 1.0), (0.75, 0.0, 0.05), (0.0, 0.0, 0.0)]
)
def test_near_duplicates_found(share, low, high):
    """A share of common words is a Jaccard similarity of share / (2 - share) of the shingles."""
    rng = np.random.default_rng(1)
    originals, others = texts_of_similarity(rng, 300, share)
    index = dedup.NearDuplicates(0.8)
    assert index.add(dedup.signatures(originals)).all()
    share_found = 1 - index.add(dedup.signatures(others)).mean()
    assert low <= share_found <= high


def test_near_duplicates_do_not_depend_on_the_blocks():
    rng = np.random.default_rng(2)
    originals, others = texts_of_similarity(rng, 600, 0.9)  # over 1,024 kept: the tables grow
    fresh, _ = texts_of_similarity(rng, 600, 0.0)
    signatures = dedup.signatures([*originals, *fresh, *others])

    expected = dedup.NearDuplicates(0.8).add(signatures)
    index = dedup.NearDuplicates(0.8)
    in_blocks = [index.add(block) for block in np.array_split(signatures, 9)]
    assert (np.concatenate(in_blocks) == expected).all()
    assert 0 < (~expected).sum() < 600


def test_near_duplicates_beyond_capacity_are_compared_but_not_remembered(caplog):
    rng = np.random.default_rng(3)
    originals, _ = texts_of_similarity(rng, 60, 0.0)
    signatures = dedup.signatures(originals)
    index = dedup.NearDuplicates(0.8, capacity=40)
    assert index.add(signatures).all()
    assert "40 documents" in caplog.text
    again = index.add(signatures)
    assert not again[:40].any() and again[40:].all()


def test_short_and_empty_texts_have_signatures():
    signatures = dedup.signatures(["", "two words", "TWO words", "another"])
    assert signatures.shape == (4, dedup.N_HASHES)
    assert (signatures[1] == signatures[2]).all() and not (signatures[1] == signatures[3]).all()

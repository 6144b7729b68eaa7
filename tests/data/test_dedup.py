"""Hashes of documents: to tell them apart, to split them, and to compare them."""

import numpy as np
import pytest

from cramjax.data import dedup

HELDOUT_WITNESS = 3256


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


@pytest.mark.parametrize("threshold, n_bands", [(0.3, 32), (0.8, 16), (0.9, 8)])
def test_similar_signatures_share_a_band_key(threshold, n_bands):
    """At the threshold, 97% of the pairs or more meet (all but those of very low thresholds)."""
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 2**16, (2000, dedup.N_HASHES)).astype(np.uint16)
    others = rng.integers(0, 2**16, originals.shape).astype(np.uint16)
    is_same = rng.random(originals.shape) < threshold
    others[is_same] = originals[is_same]
    pairs = zip(
        dedup.band_keys(originals, threshold), dedup.band_keys(others, threshold), strict=True
    )
    meets = np.array([keys == other_keys for keys, other_keys in pairs])
    assert len(meets) == dedup.n_bands(threshold) == n_bands
    assert meets.any(axis=0).mean() > 0.94

    strangers = zip(
        dedup.band_keys(originals[:1000], threshold),
        dedup.band_keys(originals[1000:], threshold),
        strict=True,
    )
    assert not any((keys == other_keys).any() for keys, other_keys in strangers)


def test_short_and_empty_texts_have_signatures():
    signatures = dedup.signatures(["", "two words", "TWO words", "another"])
    assert signatures.shape == (4, dedup.N_HASHES)
    assert (signatures[1] == signatures[2]).all() and not (signatures[1] == signatures[3]).all()

"""The order of examples: each one comes once in an epoch, and batches that are dealt are alike."""

import dataclasses
import math
import types

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.finetuning import order, packing
from cramjax.finetuning.protocols import Settings

SETTINGS = Settings(lr=1e-3, epochs=2)
DRAWN, DEALT, GROUPED = "drawn", "dealt", "grouped"


def batches(kind, lengths, batch_size, seed=3):
    feed = types.SimpleNamespace(
        n_train=len(lengths), shares_rows=kind == DEALT, train_lengths=lambda: np.asarray(lengths)
    )
    settings = dataclasses.replace(SETTINGS, batch_size=batch_size, group_by_length=kind == GROUPED)
    return list(order.batches(feed, settings, seed))


@pytest.mark.parametrize("kind", [DRAWN, DEALT, GROUPED])
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=300), batch_size=st.integers(1, 20)
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_an_epoch_has_each_example_once(kind, lengths, batch_size):
    n = len(lengths)
    found = batches(kind, lengths, batch_size)
    per_epoch = math.ceil(n / batch_size)
    assert len(found) == SETTINGS.epochs * per_epoch
    for epoch in range(SETTINGS.epochs):
        part = found[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(np.concatenate(part).tolist()) == list(range(n))
        # The short batch is the last one.
        assert [len(batch) for batch in part[:-1]] == [batch_size] * (per_epoch - 1)


def sentences(n):
    return np.random.default_rng(7).gamma(6.0, 5.0, n).astype(int) + 3


@pytest.mark.parametrize("kind", [DRAWN, DEALT, GROUPED])
def test_epochs_and_seeds_differ_and_a_seed_is_the_same_again(kind):
    lengths = sentences(64)
    first = batches(kind, lengths, 8)
    assert all(map(np.array_equal, first, batches(kind, lengths, 8)))
    assert not np.array_equal(np.concatenate(first[:8]), np.concatenate(first[8:]))
    assert not all(map(np.array_equal, first, batches(kind, lengths, 8, seed=4)))


def test_batches_that_are_dealt_have_as_many_tokens_and_all_lengths():
    lengths = sentences(1600)
    drawn = [lengths[batch].sum() for batch in batches(DRAWN, lengths, 16)]
    dealt = [lengths[batch].sum() for batch in batches(DEALT, lengths, 16)]
    assert np.ptp(dealt) < 0.1 * np.ptp(drawn)

    for batch in batches(DEALT, lengths, 16):
        assert lengths[batch].min() <= np.quantile(lengths, 0.15)
        assert lengths[batch].max() >= np.quantile(lengths, 0.85)


def test_batches_that_are_dealt_share_a_shape():
    lengths = sentences(1600)
    length = packing.row_length(lengths.max())

    def shapes(kind):
        found = batches(kind, lengths, 16)
        return {packing.n_rows(packing.place(lengths[batch].tolist(), length)) for batch in found}

    assert len(shapes(DEALT)) == 1 < len(shapes(DRAWN))

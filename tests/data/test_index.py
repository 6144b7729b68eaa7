"""Properties of the stateless order of training rows."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cramjax.data import index

KEYS = st.integers(0, 2**64 - 1)
SEEDS = st.integers(0, 2**70)


def rows(seed, first_row, n_rows, sizes, weights):
    """(source, sequence) of `n_rows` consecutive rows."""
    return index.rows_at(seed, first_row + np.arange(n_rows), sizes, weights)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.one_of(st.sampled_from([1, 2, 3, 4, 97, 65537]), st.integers(1, 20000)), KEYS)
def test_permutation_is_a_bijection(size, key):
    image = index.permute(np.arange(size), size, key)
    assert image.dtype == np.uint64
    assert np.array_equal(np.sort(image), np.arange(size))


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.sampled_from([2**33, 2**33 - 1, 2**33 + 1, 8589934609, 2**62]), KEYS)
def test_permutation_of_big_ranges_stays_inside_and_repeats_nothing(size, key):
    sample = np.unique(np.random.default_rng(0).integers(0, size, 5000))
    image = index.permute(sample, size, key)
    assert image.max() < size
    assert len(np.unique(image)) == len(sample)
    assert image.max() > size * 0.9 and image.min() < size * 0.1


def test_a_key_for_each_position_equals_the_keys_one_by_one():
    keys = np.array([5, 7, 2**64 - 1], np.uint64)
    together = index.permute(np.array([3, 3, 9]), 100, keys)
    alone = []
    for position, key in zip([3, 3, 9], keys, strict=True):
        alone.append(index.permute(np.array([position]), 100, int(key))[0])
    assert together.tolist() == alone


@pytest.mark.parametrize("size, position", [(0, 0), (10, 10), (2**62 + 1, 0)])
def test_permutation_refuses_what_is_outside(size, position):
    with pytest.raises(ValueError):
        index.permute(np.array([position]), size, 0)


def chi2_a_degree(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum() / (counts.size - 1))


def test_every_pair_of_images_is_about_equally_likely():
    size = 17
    n_keys = 60000
    keys = np.random.default_rng(0).integers(0, 2**64, n_keys, np.uint64)
    first = index.permute(np.full(n_keys, 0), size, keys).astype(int)
    second = index.permute(np.full(n_keys, 1), size, keys).astype(int)
    pairs = np.bincount(first * size + second, minlength=size * size).reshape(size, size)
    assert np.trace(pairs) == 0
    assert chi2_a_degree(pairs[~np.eye(size, dtype=bool)]) < 1.5


@pytest.mark.parametrize("size", [4096, 10007, 123_456_789])
def test_neighbours_land_far_and_evenly_apart(size):
    image = index.permute(np.arange(4096), size, 3).astype(float) / size
    steps = np.floor((np.diff(image) % 1) * 32).astype(int)
    assert chi2_a_degree(np.bincount(steps, minlength=32)) < 2
    assert abs(np.corrcoef(image[1:], image[:-1])[0, 1]) < 0.07
    assert abs(np.corrcoef(image, np.arange(4096))[0, 1]) < 0.07


MIXTURES = st.lists(st.tuples(st.integers(1, 300), st.floats(0.05, 10)), min_size=1, max_size=4)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(SEEDS, MIXTURES)
def test_every_epoch_of_every_source_is_covered_exactly(seed, mixture):
    sizes, weights = zip(*mixture, strict=True)
    source, sequence = rows(seed, 0, 4000, sizes, weights)
    for number, size in enumerate(sizes):
        drawn = sequence[source == number]
        for epoch in range(len(drawn) // size):
            in_epoch = drawn[epoch * size : (epoch + 1) * size]
            assert np.array_equal(np.sort(in_epoch), np.arange(size))


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(SEEDS, MIXTURES, st.integers(0, 2**40), st.integers(1, 200), st.integers(0, 199))
def test_any_row_alone_equals_the_row_in_sequence(seed, mixture, first_row, n_rows, offset):
    sizes, weights = zip(*mixture, strict=True)
    source, sequence = rows(seed, first_row, n_rows, sizes, weights)
    offset %= n_rows
    alone = rows(seed, first_row + offset, 1, sizes, weights)
    assert (alone[0][0], alone[1][0]) == (source[offset], sequence[offset])


def test_epochs_seeds_and_sources_have_orders_of_their_own():
    size = 200
    # Two epochs of one source under two seeds.
    orders = []
    for seed in (0, 1):
        _, sequence = rows(seed, 0, 2 * size, [size], [1.0])
        orders += [sequence[:size], sequence[size:]]
    # The first epoch of two sources in a mixture.
    source, sequence = rows(0, 0, 8 * size, [size, size], [1, 1])
    orders += [sequence[source == number][:size] for number in (0, 1)]

    # Two random permutations agree in one place on average.
    agreements = [int((a == b).sum()) for a, b in itertools.combinations(orders, 2)]
    # Seed 0, epoch 0 of source 0 is in the list twice: alone and in the mixture.
    assert sum(n_equal > 10 for n_equal in agreements) == 1


def test_mixture_shares_are_exact_in_a_block_and_close_in_any_window():
    weights = [0.5, 0.3, 0.2, 0.0]
    sizes = [10**6, 7, 100, 0]
    for block in (0, 3):
        first_row = block * index.MIXTURE_BLOCK
        source, _ = rows(1, first_row, index.MIXTURE_BLOCK, sizes, weights)
        expected = index.slot_counts(weights, len(source))
        assert np.bincount(source, minlength=4).tolist() == expected.tolist()

    windows = source[: 256 * 200].reshape(200, 256)
    for number, weight in enumerate(weights):
        assert np.abs((windows == number).sum(1) - 256 * weight).max() <= 3


@hypothesis.given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20), st.integers(20, 70000))
def test_slot_counts_are_whole_and_forget_nobody(weights, n_slots):
    counts = index.slot_counts(weights, n_slots)
    assert counts.sum() == n_slots and counts.min() >= 1
    exact = np.array(weights) / sum(weights) * n_slots
    assert (counts <= np.maximum(np.ceil(exact), 1) + 1e-9).all()


@pytest.mark.parametrize(
    "sizes, weights",
    [([3, 0], [1, 1]), ([3], [0]), ([3], [-1]), ([3, 3], [1]), ([3], [float("nan")])],
)
def test_impossible_mixtures_are_refused(sizes, weights):
    with pytest.raises(ValueError):
        rows(0, 0, 4, sizes, weights)

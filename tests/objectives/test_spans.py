import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cramjax.config.span_lengths import span_lengths
from cramjax.objectives.spans import Corruption, corrupt_spans

EOS, FIRST = 1, 999


def corruption(n_raw, n_noise, n_spans):
    return Corruption(
        n_raw=n_raw, n_noise=n_noise, n_spans=n_spans, eos_id=EOS, first_sentinel_id=FIRST
    )


@functools.partial(jax.jit, static_argnums=0)
def corrupt(how, key, tokens, rows):
    batch = corrupt_spans(how, key, tokens, rows)
    return batch.inputs, batch.targets


def texts(n_rows, n_raw, seed=0):
    return np.random.default_rng(seed).integers(2, 900, (n_rows, n_raw)).astype(np.int32)


def spans_of(targets):
    """Sentinel → its span, in the order of the targets without their end."""
    spans = {}
    for token in targets[:-1].tolist():
        if token > 900:
            assert token not in spans
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return spans


@st.composite
def corruptions(draw):
    n_noise = draw(st.integers(1, 40))
    n_kept = draw(st.integers(1, 60))
    return corruption(n_noise + n_kept, n_noise, draw(st.integers(1, min(n_noise, n_kept, 90))))


@settings(max_examples=30)
@given(corruptions(), st.integers(0, 2**31 - 1))
def test_every_promise_holds(how, seed):
    tokens = texts(3, how.n_raw, seed)
    inputs, targets = corrupt(
        how, jax.random.key(seed), tokens, jnp.asarray([0, 1, seed], jnp.int32)
    )
    assert inputs.shape == (3, how.n_inputs) and targets.shape == (3, how.n_targets)
    assert inputs.dtype == targets.dtype == jnp.int32
    sentinels = list(range(FIRST, FIRST - how.n_spans, -1))
    for text, read, wanted in zip(tokens, np.asarray(inputs), np.asarray(targets), strict=True):
        assert read[-1] == wanted[-1] == EOS
        spans = spans_of(wanted)
        # Sentinels count from the first, alike in inputs and targets; spans are not empty and do
        # not touch.
        assert list(spans) == sentinels == [token for token in read.tolist() if token > 900]
        assert all(spans.values()) and sum(map(len, spans.values())) == how.n_noise
        places = np.flatnonzero(read > 900)
        assert np.all(np.diff(places) > 1) and places[0] > 0 and places[-1] == how.n_inputs - 2
        # Putting the spans back gives the text.
        restored = []
        for token in read[:-1].tolist():
            restored += spans.get(token, [token])
        assert restored == text.tolist()


@pytest.mark.parametrize("n_inputs", [64, 512])
def test_a_row_is_a_function_of_key_number_and_text_alone(n_inputs):
    lengths = span_lengths(n_inputs, 0.15, 3.0)
    how = corruption(lengths.n_raw, lengths.n_noise, lengths.n_spans)
    tokens, rows, key = texts(8, lengths.n_raw), np.arange(8, dtype=np.int32), jax.random.key(3)
    whole = corrupt(how, key, tokens, rows)
    order = np.random.default_rng(1).permutation(8)
    for part in (order, order[:3], slice(5, 6)):
        for whole_array, some in zip(
            whole, corrupt(how, key, tokens[part], rows[part]), strict=True
        ):
            np.testing.assert_array_equal(whole_array[part], some)
    for other in (
        corrupt(how, jax.random.key(4), tokens, rows),
        corrupt(how, key, tokens, rows + 8),
    ):
        assert np.all(np.any(np.asarray(other[0] != whole[0]), axis=1))


def test_devices_do_not_matter():
    how = corruption(70, 10, 3)
    tokens, rows = texts(16, 70), np.arange(16, dtype=np.int32)
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("data",)), PartitionSpec("data"))
    placed = jax.device_put((tokens, rows), sharding)
    for one, eight in zip(
        corrupt(how, jax.random.key(0), tokens, rows),
        corrupt(how, jax.random.key(0), *placed),
        strict=True,
    ):
        np.testing.assert_array_equal(one, eight)


def test_all_ways_to_cut_are_equally_likely():
    how, n_rows = corruption(13, 6, 3), 20_000
    tokens = np.broadcast_to(np.arange(2, 15, dtype=np.int32), (n_rows, 13))
    inputs, targets = corrupt(how, jax.random.key(0), tokens, np.arange(n_rows, dtype=np.int32))
    for array, ways in ((targets, 10), (inputs, 15)):  # 2 of 5 gaps, and 2 of 6
        counts = collections.Counter(tuple(np.flatnonzero(row > 900)) for row in np.asarray(array))
        expected = n_rows / ways
        assert len(counts) == ways
        # Chi-square: its mean is ways - 1; 50 has a probability under one in a million.
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 50

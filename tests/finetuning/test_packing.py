"""Packed rows: nothing overlaps, and packed sequences get the scores they get alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramjax.finetuning import packing
from cramjax.finetuning.classification import N_OUTPUTS
from cramjax.models import encoder, network
from cramjax.models.layers import FLOAT32
from tests import networks
from tests.finetuning import grammar

SHRINK = {"n_layers": 2, "d_model": 32, "n_heads": 2, "d_ff": 48, "vocab_size": 97}
NETWORKS = ["crammed-bert", "bert-base", "bert-large-24h", "modernbert-crammed"]


def sequences(lengths, types=False):
    numbers = np.random.default_rng(0)
    return [
        packing.Encoded(
            ids=numbers.integers(3, 97, n).astype(np.int32),
            types=(np.arange(n) >= n // 2).astype(np.int32) * types,
        )
        for n in lengths
    ]


def batch_of(found, rows, length, places, n):
    batch = packing.pack(found, places, rows, length, pad_id=0)
    batch["first"] = np.pad(batch["first"], (0, n - len(found)))
    return batch | {
        "labels": np.zeros(n, np.int32),
        "targets": np.zeros(n, np.float32),
        "weights": (np.arange(n) < len(found)).astype(np.float32),
        "classes": np.ones(N_OUTPUTS, bool),
        "regression": np.float32(0),
    }


@given(st.lists(st.integers(1, 64), max_size=40))
@settings(max_examples=50)
def test_every_token_has_a_place_of_its_own(lengths):
    found = sequences(lengths)
    places = packing.place(lengths, 64)
    rows = packing.row_count(packing.n_rows(places))

    assert rows >= packing.n_rows(places)

    batch = packing.pack(found, places, rows, 64, pad_id=0)
    assert np.count_nonzero(batch["segments"]) == sum(lengths)

    for number, sequence in enumerate(found, start=1):
        is_own = batch["segments"] == number
        np.testing.assert_array_equal(batch["tokens"][is_own], sequence.ids)
        np.testing.assert_array_equal(batch["positions"][is_own], np.arange(len(sequence.ids)))
        first = batch["first"][number - 1]
        assert is_own.reshape(-1)[first]
        assert batch["positions"].reshape(-1)[first] == 0


def test_a_compiled_count_holds_what_is_needed_and_little_more():
    for needed in range(1, 400):
        count = packing.row_count(needed)
        assert needed <= count <= needed * 4 / 3
    assert len({packing.row_count(needed) for needed in range(1, 17)}) == 10


def test_rows_are_filled_well():
    lengths = np.random.default_rng(1).integers(4, 40, 400).tolist()
    assert packing.n_rows(packing.place(lengths, 64)) * 64 < 1.06 * sum(lengths)


def test_a_row_is_saved_where_the_longest_that_fits_is_no_good_neighbour():
    lengths = [20, 15, 12, 11, 10, 8]  # 20 + 10 + 8 and 15 + 12 + 11
    assert len(packing._first_fit(lengths, 38)) == 3
    assert packing.n_rows(packing.place(lengths, 38)) == 2


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(0, 100))
@settings(max_examples=100)
def test_the_best_sum_is_that_of_all_choices(shares, room):
    chosen = packing._best_sum(range(len(shares)), shares, room)
    sums = {0}
    for share in shares:
        sums |= {one + share for one in sums}
    assert len(set(chosen)) == len(chosen)
    assert sum(shares[index] for index in chosen) == max(one for one in sums if one <= room)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_of_packed_sequences_are_those_of_each_alone(name, pooling):
    config = networks.named(name, **SHRINK)
    objective = grammar.classifying(config, pooling=pooling)
    params = objective.init(jax.random.key(0), network.init_params(config, jax.random.key(1)))
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(2), leaf.shape), params
    )
    found = sequences([9, 14, 3, 20, 31, 7], types=config.token_types > 1)
    places = packing.place([len(one.ids) for one in found], 32)

    assert packing.n_rows(places) < len(found)

    predict = jax.jit(objective.predict)
    together = predict(params, batch_of(found, 6, 32, places, 6))
    alone = predict(params, batch_of(found, 6, 32, [(row, 0) for row in range(6)], 6))
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_local_attention_counts_places_within_a_sequence():
    config = networks.named(
        "modernbert-crammed", **SHRINK, local_window=6, global_every=2, local_rotary_base=100.0
    )
    objective = grammar.classifying(config, dropout=0.0, attention_dropout=0.0)
    params = objective.init(jax.random.key(0), network.init_params(config, jax.random.key(1)))
    found = sequences([20, 12])
    predict = jax.jit(objective.predict)
    packed = predict(params, batch_of(found, 2, 32, [(0, 0), (0, 20)], 2))
    alone = predict(params, batch_of(found, 2, 32, [(0, 0), (1, 0)], 2))
    np.testing.assert_allclose(packed, alone, atol=2e-5)


def test_the_window_is_seen():
    """A local network differs from the global one only where tokens lie beyond the window."""
    config = networks.named(
        "modernbert-crammed", **SHRINK | {"n_layers": 3}, local_window=6, global_every=3
    )
    everywhere = dataclasses.replace(config, local_window=0)
    params = network.init_params(config, jax.random.key(0))
    for length, same in ((4, True), (12, False)):
        tokens = jnp.asarray(np.random.default_rng(0).integers(3, 97, (1, length)), jnp.int32)
        encode = jax.jit(encoder.encode, static_argnums=(0, 1))
        near = encode(config, FLOAT32, params, tokens)
        far = encode(everywhere, FLOAT32, params, tokens)
        assert bool(jnp.allclose(near, far, atol=1e-5)) is same


def test_gradients_do_not_see_what_is_no_example():
    config = networks.named("crammed-bert", **SHRINK)
    objective = grammar.classifying(config, head_width=16, dropout=0.0, attention_dropout=0.0)
    params = objective.init(jax.random.key(0), network.init_params(config, jax.random.key(1)))
    found = sequences([9, 14])

    def gradient(batch):
        def loss(params):
            total, weight = objective.loss(params, jax.random.key(0), batch, jnp.arange(1))
            return total / weight

        return jax.jit(jax.grad(loss))(params)

    small = gradient(batch_of(found, 1, 32, [(0, 0), (0, 9)], 2))
    large = gradient(batch_of(found, 3, 32, [(0, 0), (0, 9)], 5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), small, large)

"""Text to text: packed rows are worth what their pairs are worth alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramjax.config.pairs import PairShape
from cramjax.config.resolve import get_config
from cramjax.models import network
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families, losses
from cramjax.training.session import AssumedVocabulary

VOCAB, SEP, PAD = 64, 1, 0
SIZES = (
    "data.seq_len=24", "data.target_len=16", "model.n_layers=2",
    "model.d_model=16", "model.n_heads=2", "model.head_dim=8", "model.d_ff=32",
    "model.vocab_multiple=1", "model.dropout=0.0", "objective.z_loss=0.01",
)  # fmt: skip


def objective_of(*overrides):
    config = get_config("t5_pairs", *SIZES, *overrides)
    vocabulary = AssumedVocabulary(vocab_size=VOCAB, extra_ids=1)
    return families.build(config, vocabulary, FLOAT32)


OBJECTIVE = objective_of()
PARAMS = network.init_params(OBJECTIVE.network, jax.random.key(0))
evaluate = jax.jit(OBJECTIVE.evaluate)


@jax.jit
def loss_and_gradients(tokens, key):
    def total(params):
        loss, weight = OBJECTIVE.loss(params, key, tokens, jnp.arange(1, dtype=jnp.int32))
        return loss, weight

    (loss, weight), gradients = jax.value_and_grad(total, has_aux=True)(PARAMS)
    return loss, weight, gradients


def row_of(pairs):
    """One row [1, 40] of pairs of random tokens."""
    row = np.full((1, 40), PAD, np.uint16)
    for side, start in ((0, 0), (1, 24)):
        joined = np.concatenate([pair[side] for pair in pairs])
        row[0, start : start + len(joined)] = joined
    return row


def random_pairs(lengths, seed=0):
    rng = np.random.default_rng(seed)

    def text(length):
        return np.r_[rng.integers(3, VOCAB, length - 1), SEP]

    return [(text(source), text(target)) for source, target in lengths]


@st.composite
def packed_lengths(draw):
    """Lengths of the pairs of one row: each at least 2, together at most 24 and 16."""
    left, lengths = [24, 16], []
    while min(left) >= 2 and (not lengths or draw(st.booleans())):
        pair = [draw(st.integers(2, min(room, 12))) for room in left]
        lengths.append(pair)
        left = [room - n for room, n in zip(left, pair, strict=True)]
    return lengths


# Dear: a gradient for each pair of each example, of one compiled program.
@settings(max_examples=12)
@given(packed_lengths(), st.integers(0, 1000))
def test_loss_and_gradients_of_a_row_are_the_sums_of_its_pairs_alone(lengths, seed):
    pairs = random_pairs(lengths, seed)
    key = jax.random.key(0)
    packed = loss_and_gradients(row_of(pairs), key)
    alone = [loss_and_gradients(row_of([pair]), key) for pair in pairs]
    summed = jax.tree.map(lambda *leaves: sum(leaves), *alone)
    assert packed[1] == sum(target for _, target in lengths)
    np.testing.assert_allclose(packed[0], summed[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(packed[2]), jax.tree.leaves(summed[2]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_a_padded_pair_is_worth_what_the_plain_network_says():
    from cramjax.models import t5

    common = (OBJECTIVE.network, FLOAT32, PARAMS)

    @jax.jit
    def alone(source, target):
        encoded = t5.encode(*common, source[None])
        read = t5.shift_right(target[None], PAD)
        logits = t5.head(*common, t5.decode(*common, encoded, read))
        return optax.softmax_cross_entropy_with_integer_labels(logits[0], target).sum()

    pairs = random_pairs([(9, 7), (9, 7)])
    total = sum(float(alone(*map(jnp.asarray, pair))) for pair in pairs)
    rows, ones = jnp.zeros(2, jnp.int32), jnp.asarray([1.0, 0.0], jnp.float32)
    sums = evaluate(PARAMS, np.repeat(row_of(pairs), 2, axis=0), rows, ones)
    np.testing.assert_allclose(float(sums["loss"]), total, rtol=1e-5)
    assert float(sums["weight"]) == 14


def test_rows_without_weight_and_padding_do_not_count():
    row = np.concatenate([row_of(random_pairs([(5, 6)])), row_of(random_pairs([(7, 3)], 1))])
    rows, weights = jnp.arange(2, dtype=jnp.int32), jnp.asarray([1.0, 0.0], jnp.float32)
    sums = evaluate(PARAMS, row, rows, weights)
    labels, label_weights = OBJECTIVE.predicted(row, rows)
    assert float(sums["weight"]) == 6 and float(label_weights.sum()) == 9
    assert (np.asarray(labels)[np.asarray(label_weights) == 0] == PAD).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_labels_give_the_loss_and_the_gradient_of_soft_labels(smoothing):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    matrix = jnp.asarray(rng.normal(size=(8, 13)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 13, (2, 5)), jnp.int32)
    weights = jnp.asarray(rng.random((2, 5)), jnp.float32)

    def ours(matrix, hidden):
        return losses.predicted_cross_entropy(
            lambda matrix, hidden: hidden @ matrix, matrix, hidden, labels, weights, 0.0, smoothing
        )

    def theirs(matrix, hidden):
        soft = optax.smooth_labels(jax.nn.one_hot(labels, 13), smoothing)
        return jnp.sum(weights * optax.softmax_cross_entropy(hidden @ matrix, soft))

    for function in (ours, lambda *both: losses.cross_entropy(
        both[1] @ both[0], labels, weights, 0.0, smoothing
    )):  # fmt: skip
        found = jax.value_and_grad(function, argnums=(0, 1))(matrix, hidden)
        wanted = jax.value_and_grad(theirs, argnums=(0, 1))(matrix, hidden)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_training_smooths_and_evaluation_does_not():
    plain = objective_of("objective.label_smoothing=0.0", "objective.z_loss=0.0")
    smooth = dataclasses.replace(plain, label_smoothing=0.2)
    row, rows = row_of(random_pairs([(9, 7), (4, 5)])), jnp.zeros(1, jnp.int32)
    key, ones = jax.random.key(0), jnp.ones(1, jnp.float32)

    @jax.jit
    def both(params):
        score = [one.evaluate(params, row, rows, ones)["loss"] for one in (plain, smooth)]
        return score, [one.loss(params, key, row, rows)[0] for one in (plain, smooth)]

    scores, trained = jax.device_get(both(PARAMS))
    np.testing.assert_allclose(trained[0], scores[0], rtol=1e-6)
    assert scores[0] == scores[1] and trained[0] != trained[1]


def test_numbers_of_a_row_follow_from_both_lengths():
    assert OBJECTIVE.row_shape == PairShape(n_inputs=24, n_targets=16)
    assert (OBJECTIVE.row_tokens, OBJECTIVE.n_predicted) == (40, 16)
    as_long = objective_of("data.target_len=None")
    assert as_long.row_shape == PairShape(n_inputs=24, n_targets=24)
    assert as_long.flops > OBJECTIVE.flops
    dropping = objective_of("data.long_pairs=drop")
    assert not dropping.row_shape.cuts


def test_frequencies_are_those_of_the_targets_and_never_of_padding():
    counts = np.arange(VOCAB)
    shares = OBJECTIVE.frequencies(counts)
    assert shares[PAD] == 0 and shares.sum() == pytest.approx(1.0)
    assert shares[40] / shares[20] == pytest.approx(41 / 21)

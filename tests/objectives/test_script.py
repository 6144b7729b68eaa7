"""SCRIPT: against its formula written out, and as a pure function of the rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.config.resolve import get_config
from cramjax.errors import UserError
from cramjax.models import encoder, network
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families, losses, masking, script
from cramjax.training.session import AssumedVocabulary

N_ROWS, SEQ_LEN, VOCAB_SIZE = 4, 16, 64
SMALL = (
    f"data.seq_len={SEQ_LEN}",
    "model.n_layers=1",
    "model.d_model=16",
    "model.n_heads=2",
    "model.d_ff=16",
    "model.unroll=1",
)


@pytest.fixture(scope="module")
def objective():
    config = get_config("bert_1day:script", *SMALL)
    return families.build(config, AssumedVocabulary(vocab_size=VOCAB_SIZE), FLOAT32)


@pytest.fixture(scope="module")
def batch(objective):
    """Parameters, key, tokens and row numbers."""
    params = network.init_params(objective.network, jax.random.key(1))
    tokens = np.random.default_rng(0).integers(5, VOCAB_SIZE, (N_ROWS, SEQ_LEN))
    return params, jax.random.key(2), jnp.asarray(tokens), jnp.arange(N_ROWS, dtype=jnp.int32)


def written_out(objective, params, key, tokens, rows):
    """The code's formula: mean loss of masked tokens, plus binary cross-entropy of all tokens."""
    masked, hidden, _ = objective.masked(params, key, tokens, rows)
    logits = encoder.head(objective.network, FLOAT32, params, hidden)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), masked.labels[..., None], -1)
    of_masked = -picked.mean()

    head = encoder.head_params(params)
    guesses = objective.sampled(head, jax.random.fold_in(key, 2), hidden, rows)
    read = np.array(masked.inputs)
    for row in range(len(read)):
        read[row, masked.positions[row]] = guesses[row]
    labels = (read != np.asarray(masked.inputs)).astype(np.float32)
    states = encoder.encode(objective.network, FLOAT32, params, jnp.asarray(read))
    all_logits = encoder.head(objective.network, FLOAT32, params, states)
    presence = jax.nn.sigmoid(jax.nn.logsumexp(all_logits, axis=-1))
    critic = -(labels * jnp.log(presence) + (1 - labels) * jnp.log1p(-presence)).mean()
    return of_masked + critic, labels


def test_the_loss_is_the_formula_of_the_code(objective, batch):
    total, weight = jax.jit(objective.loss)(*batch)
    expected, labels = written_out(objective, *batch)
    assert weight == N_ROWS * 4  # a quarter of 16, special tokens or not
    np.testing.assert_allclose(total / weight, expected, rtol=1e-5)
    # Nothing is put in where nothing was masked; behind a mask nearly always.
    assert 0 < labels.sum() <= weight


def test_a_batch_in_parts_has_the_same_sum(objective, batch):
    params, key, tokens, rows = batch
    loss = jax.jit(objective.loss)
    whole = loss(*batch)
    parts = [loss(params, key, tokens[part], rows[part]) for part in (slice(0, 2), slice(2, 4))]
    for index in (0, 1):
        np.testing.assert_allclose(sum(part[index] for part in parts), whole[index], rtol=1e-5)


@pytest.mark.slow
def test_logits_in_chunks_change_neither_value_nor_gradient(objective, batch, monkeypatch):
    params, *rest = batch

    def value_and_gradient():
        return jax.jit(jax.value_and_grad(lambda params: objective.loss(params, *rest)[0]))(params)

    at_once = value_and_gradient()
    # A few positions at a time: not even a row of 16 has so few logits.
    monkeypatch.setattr(losses, "MOST_LOGITS", 3 * VOCAB_SIZE)
    in_chunks = value_and_gradient()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(at_once[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), at_once, in_chunks
    )


def test_replaced_is_what_differs_from_the_masked_input():
    """By Cramming's code; a right guess behind a mask counts, and one that kept its token not."""
    batch = masking.MaskedBatch(
        inputs=jnp.array([[7, 4, 4, 9, 3]]),  # 4 is [MASK]; position 3 kept its token
        positions=jnp.array([[1, 2, 3, 4]]),
        labels=jnp.array([[8, 6, 9, 3]]),
        weights=jnp.array([[1.0, 1.0, 1.0, 0.0]]),  # a special token fills up the count
    )
    filled, replaced = script.with_samples(batch, jnp.array([[8, 4, 9, 50]]))
    assert filled.tolist() == [[7, 8, 4, 9, 3]]
    assert replaced.tolist() == [[False, True, False, False, False]]


def test_evaluation_and_parameters_are_those_of_masked_language_modelling(objective, batch):
    params, _, tokens, rows = batch
    plain_config = get_config("bert_1day", *SMALL)
    plain = families.build(plain_config, AssumedVocabulary(vocab_size=VOCAB_SIZE), FLOAT32)
    ones = jnp.ones(N_ROWS)
    ours, theirs = (one.evaluate(params, tokens, rows, ones) for one in (objective, plain))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert objective.description == plain.description
    # A second pass, with the head over all positions.
    assert (
        objective.flops - plain.flops
        == dataclasses.replace(
            plain, corruption=dataclasses.replace(plain.corruption, mask_rate=1.0)
        ).flops
    )


def test_means_of_embeddings_are_refused():
    with pytest.raises(UserError, match="must be 1 where objective.name is script"):
        get_config("bert_1day:script", "objective.pool=2")
    with pytest.raises(UserError, match="stages.0.: objective.pool=2: must be 1 where objective"):
        get_config("bert_1day:script", "growth.stages=[{'until': 0.5, 'pool': 2}]")

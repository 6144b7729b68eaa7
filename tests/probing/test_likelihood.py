"""Pseudo-log-likelihoods against a plain loop over masked copies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.data import tokenizers
from cramjax.errors import UserError
from cramjax.inference import LoadedModel
from cramjax.models import encoder, network, t5
from cramjax.models.layers import FLOAT32, Precision
from cramjax.probing import likelihood
from tests import networks

SENTENCES = [
    "the cat sees the dog",
    "a dog",
    "the dogs see the cat and the cat sees them all",
    "a dog",
    "cats see",
]
BATCH = 256  # tokens; one number for all tests, so that each shape is compiled once


@pytest.fixture(scope="module")
def models():
    texts = SENTENCES * 20
    wordpiece, _ = tokenizers.train(
        "wordpiece", texts, vocab_size=60, lowercase=True, ascii_only=True
    )
    unigram, _ = tokenizers.train(
        "wordpiece", texts, vocab_size=60, lowercase=True, ascii_only=True, extra_ids=4
    )
    # The embedding has more rows than the tokenizer has entries.
    config = networks.named("bert-base", n_layers=2, d_model=32, n_heads=2, d_ff=48, vocab_size=80)
    seq2seq = t5.T5Config(
        vocab_size=80, n_layers=1, n_decoder_layers=1, d_model=32, n_heads=2, head_dim=16, d_ff=48
    )
    return {
        "encoder": loaded(config, random(network.abstract_params(config)), wordpiece),
        "t5": loaded(seq2seq, random(network.abstract_params(seq2seq)), unigram),
    }


def random(shapes):
    """Parameters of those shapes without compiling an initialisation."""
    numbers = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(numbers.normal(0.0, 0.3, leaf.shape).astype(np.float32)), shapes
    )


def loaded(config, params, tokenizer):
    special = tokenizers.special_ids(tokenizer)
    return LoadedModel(
        config=config, precision=FLOAT32, params=params, tokenizer=tokenizer, special=special
    )


def one_by_one(model, sentence):
    """Each token hidden in turn, unpadded, with NumPy's softmax over the tokenizer's entries."""
    config, params = model.config, model.params

    @jax.jit
    def logits_of(ids, place, read):
        if model.is_t5:
            encoded = t5.encode(config, FLOAT32, params, ids)
            hidden = t5.decode(config, FLOAT32, params, encoded, read)
            return t5.head(config, FLOAT32, params, hidden)[0, 1]
        hidden = encoder.encode(config, FLOAT32, params, ids)
        return encoder.head(config, FLOAT32, params, hidden)[0, place]

    if model.is_t5:
        hidden_id = model.tokenizer.token_to_id("<extra_id_0>")
    else:
        hidden_id = model.special["mask"]
    encoding = model.tokenizer.encode(sentence)
    total = 0.0
    for place, token in enumerate(encoding.ids):
        if encoding.special_tokens_mask[place]:
            continue
        ids = list(encoding.ids)
        ids[place] = hidden_id
        read = jnp.asarray([[model.special["pad"], hidden_id, token]])
        logits = logits_of(jnp.asarray([ids]), place, read)
        numbers = np.asarray(logits, np.float64)[: model.tokenizer.get_vocab_size()]
        total += numbers[token] - np.log(np.exp(numbers).sum())

    return total


@pytest.mark.parametrize("kind", ["encoder", "t5"])
def test_scores_are_those_of_a_plain_loop(models, kind):
    model = models[kind]
    expected = [one_by_one(model, sentence) for sentence in SENTENCES[:2]]
    scores = likelihood.sentence_scores(model, SENTENCES, batch_tokens=BATCH)
    np.testing.assert_allclose(scores[:2], expected, atol=2e-4)
    assert scores[3] == scores[1]
    assert scores[4] != scores[1]


@pytest.mark.parametrize("kind", ["encoder", pytest.param("t5", marks=pytest.mark.slow)])
def test_the_size_of_batches_does_not_matter(models, kind):
    seen = []
    one = likelihood.sentence_scores(models[kind], SENTENCES, batch_tokens=16, progress=seen.append)
    many = likelihood.sentence_scores(models[kind], SENTENCES, batch_tokens=BATCH)
    np.testing.assert_allclose(one, many, atol=1e-4)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_model_of_bfloat16_is_scored_in_float32(models):
    model = models["encoder"]
    narrow = dataclasses.replace(
        model, precision=Precision(jnp.dtype("float32"), jnp.dtype("bfloat16"))
    )
    expected = likelihood.sentence_scores(model, SENTENCES, batch_tokens=BATCH)
    np.testing.assert_array_equal(
        likelihood.sentence_scores(narrow, SENTENCES, batch_tokens=BATCH), expected
    )


def test_a_sentence_beyond_the_positions_is_refused(models):
    model = models["encoder"]
    short = dataclasses.replace(model, config=dataclasses.replace(model.config, max_positions=6))
    with pytest.raises(
        UserError, match=r"^'the cat sees the dog'…: 7 tokens, and the model has 6 positions"
    ):
        likelihood.sentence_scores(short, SENTENCES)
    with pytest.raises(UserError, match=r"^a\.jsonl:3: 'the dogs"):
        where = [f"a.jsonl:{number}" for number in range(1, 5)]
        likelihood.sentence_scores(
            short, ["a dog", "a dog", SENTENCES[2], SENTENCES[2]], where=where
        )


def test_a_sentence_may_fill_the_positions(models):
    model = models["encoder"]
    n = len(model.tokenizer.encode(SENTENCES[2]).ids)
    # A usual length would be beyond the table.
    assert likelihood.padded_length(n, None) > n

    inner = model.params["encoder"]
    table = inner["embeddings"] | {"positions": inner["embeddings"]["positions"][:n]}
    params = model.params | {"encoder": inner | {"embeddings": table}}
    full = dataclasses.replace(
        model, config=dataclasses.replace(model.config, max_positions=n), params=params
    )
    expected = likelihood.sentence_scores(model, SENTENCES[2:3], batch_tokens=BATCH)
    scores = likelihood.sentence_scores(full, SENTENCES[2:3], batch_tokens=BATCH)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_a_model_without_a_mask_is_refused(models):
    model = models["encoder"]
    special = {role: number for role, number in model.special.items() if role != "mask"}
    with pytest.raises(UserError, match="mask token"):
        likelihood.sentence_scores(dataclasses.replace(model, special=special), SENTENCES)

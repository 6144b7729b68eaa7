"""Training starts from a pretrained model: a run, or a model of `transformers`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cramjax
from cramjax.checkpoints import pretrained
from cramjax.data import tokenizers
from cramjax.errors import UserError
from cramjax.models import encoder, network
from cramjax.publishing.export import export
from tests.e2e import test_main as cli

CONFIG = encoder.EncoderConfig(
    vocab_size=20, n_layers=1, d_model=8, n_heads=2, d_ff=8, decoder_bias=True
)


@pytest.fixture
def given():
    """A model of `CONFIG` in which no parameter is 0."""
    params = network.init_params(CONFIG, jax.random.key(1))
    return pretrained.Pretrained(
        path="here",
        config=CONFIG,
        params=jax.tree.map(lambda leaf: np.asarray(leaf) + 1, params),
        tokenizer=None,
        tokenizer_file="here/tokenizer.json",
    )


@pytest.mark.parametrize("vocab_size", [16, 20, 24])
def test_rows_of_the_vocabulary_that_the_model_lacks_stay_fresh(given, vocab_size):
    cfg = dataclasses.replace(CONFIG, vocab_size=vocab_size, dropout=0.3)
    fresh = jax.tree.map(jnp.asarray, network.init_params(cfg, jax.random.key(0)))
    started = pretrained.start_from(given, dataclasses.asdict(cfg), fresh)
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, fresh)

    n = min(vocab_size, CONFIG.vocab_size)
    for path in ("encoder/embeddings/tokens", "head/bias"):
        rows, theirs, ours = (leaf_at(tree, path) for tree in (started, given.params, fresh))
        np.testing.assert_array_equal(rows[:n], theirs[:n])
        np.testing.assert_array_equal(rows[n:], ours[n:])
    path = "encoder/layers/mlp/wi/kernel"
    np.testing.assert_array_equal(leaf_at(started, path), leaf_at(given.params, path))


def leaf_at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def test_another_network_is_refused_with_the_flags_to_give(given):
    cfg = dataclasses.replace(CONFIG, n_layers=3, positions="rotary")
    flags = "--config.model.n_layers=1 --config.model.positions=scaled_sinusoidal"
    with pytest.raises(UserError, match=f"add {flags}$"):
        pretrained.start_from(given, dataclasses.asdict(cfg), {})

    finetuned = dataclasses.replace(given, finetuned={"task": "rte"})
    with pytest.raises(UserError, match="is finetuned for rte; name the run"):
        pretrained.start_from(finetuned, dataclasses.asdict(cfg), {})


def flags(corpus, checkpoint):
    small = [flag.removeprefix("--config.") for flag in cli.SMALL]
    return [
        *small,
        f"data.source=text:{corpus}",
        f"data.cache_dir={corpus.parent / 'prepared'}",
        f"init_from={checkpoint}",
    ]


@pytest.mark.slow
def test_a_run_starts_where_its_export_ended(small_run, corpus, tmp_path):
    export(small_run, tmp_path / "export", tell=lambda _: None)
    settings = [
        "budget.steps=1",
        "optimizer.lr=0.0",
        "data.tokenizer=unigram",
        "data.vocab_size=100",
    ]
    config = cramjax.get_config("quickstart", *flags(corpus, tmp_path / "export"), *settings)
    cramjax.train(config, tmp_path / "run")
    before, after = cramjax.load(small_run), cramjax.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert tokenizers.canonical_json(after.tokenizer) == tokenizers.canonical_json(before.tokenizer)
    assert after.config.vocab_size == before.config.vocab_size


def test_a_model_of_another_family_is_refused(small_run, corpus):
    config = cramjax.get_config("t5_1day:smoke", *flags(corpus, small_run)[-3:])
    with pytest.raises(UserError, match="is a model of family encoder, but model.family=t5"):
        pretrained.with_tokenizer(config)


def test_a_tokenizer_that_is_not_the_models_is_refused(small_run, corpus, tmp_path):
    """The ids of a ready-made dataset would be read as other words."""
    other, _ = tokenizers.train(
        "wordpiece", ["a b c d"] * 9, vocab_size=40, lowercase=True, ascii_only=True
    )
    tokenizers.save(other, tmp_path / "other")

    def named(file):
        settings = ["budget.steps=1", f"data.tokenizer={file}"]
        config = cramjax.get_config("quickstart", *flags(corpus, small_run), *settings)
        return pretrained.with_tokenizer(config).data.tokenizer

    own = str(small_run / "tokenizer" / "tokenizer.json")
    assert named(own) == own
    with pytest.raises(UserError, match="leave data.tokenizer out"):
        named(tmp_path / "other" / "tokenizer.json")


def test_a_dataset_with_another_tokenizer_is_refused(small_run, corpus, tmp_path):
    prepared = json.loads((small_run / "environment.json").read_text())["dataset"]
    copy = tmp_path / "exported"
    export(small_run, copy, tell=lambda _: None)
    other, _ = tokenizers.train(
        "wordpiece", ["a b c d"] * 9, vocab_size=40, lowercase=True, ascii_only=True
    )
    tokenizers.save(other, copy)

    settings = ["budget.steps=1", f"data.source=prepared:{prepared}"]
    config = cramjax.get_config("quickstart", *flags(corpus, copy), *settings)
    message = "has another tokenizer than .*; prepare the text with --config.data.tokenizer="
    with pytest.raises(UserError, match=message):
        cramjax.train(config, tmp_path / "new")

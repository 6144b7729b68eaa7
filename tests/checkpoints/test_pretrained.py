"""Training that starts from a model that is there: a run, or one of `transformers`."""

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


def made(**changes):
    cfg = dataclasses.replace(CONFIG, **changes)
    return pretrained.Pretrained(
        path="here",
        config=cfg,
        params=jax.tree.map(
            lambda leaf: np.asarray(leaf) + 1, network.init_params(cfg, jax.random.key(1))
        ),
        tokenizer=None,
        tokenizer_file="here/tokenizer.json",
    )


@pytest.mark.parametrize("vocab_size", [16, 20, 24])
def test_rows_of_the_vocabulary_are_those_there_are(vocab_size):
    own = dataclasses.replace(CONFIG, vocab_size=vocab_size, dropout=0.3)
    fresh = jax.tree.map(jnp.asarray, network.init_params(own, jax.random.key(0)))
    given = made()
    started = pretrained.start_from(given, dataclasses.asdict(own), fresh)
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, fresh)
    n = min(vocab_size, 20)
    for tree in ("tokens", "bias"):
        pick = (
            (lambda p: p["encoder"]["embeddings"]["tokens"])
            if tree == "tokens"
            else (lambda p: p["head"]["bias"])
        )
        np.testing.assert_array_equal(pick(started)[:n], pick(given.params)[:n])
        np.testing.assert_array_equal(pick(started)[n:], pick(fresh)[n:])
    np.testing.assert_array_equal(
        started["encoder"]["layers"]["mlp"]["wi"]["kernel"],
        given.params["encoder"]["layers"]["mlp"]["wi"]["kernel"],
    )


def test_another_network_is_refused_with_the_flags_to_give():
    own = dataclasses.asdict(dataclasses.replace(CONFIG, n_layers=3, positions="rotary"))
    with pytest.raises(
        UserError,
        match=r"add --config.model.n_layers=1 --config.model.positions=scaled_sinusoidal$",
    ):
        pretrained.start_from(made(), own, {})
    with pytest.raises(UserError, match="is finetuned for rte; name the run"):
        pretrained.start_from(dataclasses.replace(made(), finetuned={"task": "rte"}), own, {})


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
    kept = cramjax.load(tmp_path / "run").config
    assert kept.vocab_size == before.config.vocab_size


def test_a_model_of_another_family_or_tokenizer_is_refused(small_run, corpus, tmp_path):
    config = cramjax.get_config("t5_1day:smoke", *flags(corpus, small_run)[-3:])
    with pytest.raises(UserError, match="is a model of family encoder, but model.family=t5"):
        pretrained.with_tokenizer(config)
    prepared = json.loads((small_run / "environment.json").read_text())["dataset"]
    copy = tmp_path / "run"
    copy.mkdir()
    other, _ = tokenizers.train(
        "wordpiece", ["a b c d"] * 9, vocab_size=40, lowercase=True, ascii_only=True
    )
    for path in small_run.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "tokenizer").unlink()
    tokenizers.save(other, copy / "tokenizer")
    config = cramjax.get_config(
        "quickstart", *flags(corpus, copy), "budget.steps=1", f"data.source=prepared:{prepared}"
    )
    with pytest.raises(
        UserError,
        match="has another tokenizer than .*; prepare the text with --config.data.tokenizer=",
    ):
        cramjax.train(config, tmp_path / "new")

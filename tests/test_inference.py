"""A trained run is used from Python: it fills masks, and demonstrates itself."""

import types

import numpy as np
import pytest

import cramjax
from cramjax import demonstration
from cramjax.data import tokenizers
from cramjax.errors import UserError
from tests.stepping import one_device

SETTINGS = (
    "data.vocab_size=256",
    "data.seq_len=32",
    "data.heldout_fraction=0.1",
    "data.loader=numpy",
    "model.d_model=64",
    "model.n_layers=1",
    "model.first_norm=True",
    "model.d_ff=64",
    "budget.hours=None",
    "budget.steps=150",
    "batch_size=32",
    "microbatch_size=32",
    "log.tensorboard=False",
    "eval.batch_size=32",
    "eval.batches=1",
    "eval.every_fraction=0.0",
    "optimizer.name=adamw",
    "optimizer.lr=1e-2",
    "precision=float32",
)


@pytest.mark.slow
def test_a_trained_run_is_loaded_and_fills_masks_from_python(corpus, tmp_path):
    data = (f"data.source=text:{corpus}", f"data.cache_dir={tmp_path / 'prepared'}")
    with one_device():
        config = cramjax.get_config("quickstart", *data, *SETTINGS)
        summary = cramjax.train(config, tmp_path / "run")
    assert summary["stop_reason"] == "steps"
    assert summary["eval_loss"] < summary["unigram_loss"]

    model = cramjax.load(tmp_path / "run")
    (guesses,) = cramjax.fill_mask(model, "anna reads [MASK] in the garden .", top_k=3)
    assert len(guesses) == 3 and guesses[0][1] >= guesses[1][1] and 0 < guesses[0][1] <= 1
    # In this corpus a verb decides its object: people read books and nothing else.
    assert guesses[0][0] == "books"
    with pytest.raises(UserError, match="MASK"):
        cramjax.fill_mask(model, "nothing to fill")

    _, *lines = demonstration.show(tmp_path / "run", 2)
    assert len(lines) == 2 and all("→" in line or "✓" in line for line in lines)


def test_words_are_hidden_whatever_signs_the_text_has():
    texts = ["the sign ▁ of another tokenizer stands in this text here"] * 30
    tokenizer, _ = tokenizers.train(
        "wordpiece", texts, vocab_size=90, lowercase=False, ascii_only=False
    )
    model = types.SimpleNamespace(tokenizer=tokenizer, is_t5=False)
    ids = np.array(tokenizer.encode(texts[0] * 3, add_special_tokens=False).ids)
    assert tokenizer.token_to_id("▁") is not None
    assert demonstration._spans(model, ids)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        cramjax.load(tmp_path)

"""Models whose vocabulary, head or weights are odd: no probability above 1, no answer lost."""

import dataclasses
import functools
import string

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cramjax import inference
from cramjax.errors import UserError
from cramjax.finetuning.t5_feed import check_labels, check_rows
from cramjax.glue.tasks import SUITES
from cramjax.hub import directory
from cramjax.models import encoder, network, t5
from cramjax.models.layers import FLOAT32
from cramjax.probing import likelihood
from cramjax.publishing import parity, saving, stock

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONFIG = encoder.EncoderConfig(
    vocab_size=32, n_layers=1, d_model=8, n_heads=2, d_ff=8, decoder_bias=True, head_transform=True
)


@pytest.fixture(scope="module")
def gapped():
    """A model of 22 entries of which the largest is 27; the bias of "a", 26, is 1000."""
    ids = dict.fromkeys(SPECIAL) | {f"w{number}": None for number in range(15)}
    ids = {word: number for number, word in enumerate(ids)} | {"a": 26, "b": 27}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))

    params = network.init_params(CONFIG, jax.random.key(0))
    params["head"]["bias"] = params["head"]["bias"].at[26].set(1000.0)
    special = {role: ids[f"[{role.upper()}]"] for role in ("pad", "unk", "cls", "sep", "mask")}
    return inference.LoadedModel(
        config=CONFIG, precision=FLOAT32, params=params, tokenizer=tokenizer, special=special
    )


def test_ids_with_gaps_are_tokens_too(gapped):
    (guesses,) = inference.fill_mask(gapped, "w1 [MASK] w2", top_k=99)
    assert guesses[0] == ("a", pytest.approx(1.0)) and len(guesses) == 22
    scores = likelihood.sentence_scores(gapped, ["w1 w2 w3 w4", "w1 w2", "a"])
    assert scores[0] < -3900 and scores[1] < -1900 and -1 < scores[2] <= 0


def test_ids_with_gaps_go_to_transformers_and_back(gapped, tmp_path):
    pytest.importorskip("transformers")
    params = jax.tree.map(np.asarray, gapped.params)
    model = stock.StockModel(
        config=CONFIG, params=params, labels=None, tokenizer=gapped.tokenizer, max_length=16
    )
    saving.save(tmp_path, model)
    config, read = saving.read_back(tmp_path, model, exact=True)
    assert parity.compare(tmp_path, config, read, gapped.tokenizer) < 1e-3
    assert directory.read_model(tmp_path).tokenizer.get_vocab() == gapped.tokenizer.get_vocab()


def t5_model(ids, params=None):
    """Returns a random T5 of 28 rows whose tokenizer has entries for `ids`."""
    config = t5.T5Config(
        vocab_size=28, n_layers=1, n_decoder_layers=1, d_model=8, n_heads=2, head_dim=4, d_ff=8
    )
    if params is None:
        params = jax.jit(functools.partial(network.init_params, config))(jax.random.key(0))
    words = {f"w{number}": number for number in ids}
    return inference.LoadedModel(
        config=config,
        precision=FLOAT32,
        params=params,
        tokenizer=tokenizers.Tokenizer(models.WordLevel(words, unk_token="w2")),
        special={"pad": 0, "sep": 1},
    )


def test_a_t5_writes_no_id_without_a_token(gapped):
    assert gapped.unused_ids == tuple(range(20, 26))
    inputs = [[3, 4, 5], [6, 7, 8]]
    model = t5_model(range(28))
    chosen = set(sum(inference.generate_ids(model, inputs, max_len=4), [])) - {27}
    assert chosen
    fewer = t5_model(set(range(28)) - chosen)
    for n_beams in (1, 2):
        answers = inference.generate_ids(fewer, inputs, max_len=4, n_beams=n_beams)
        assert not chosen & set(sum(answers, []))

    nan = t5_model(range(28), jax.tree.map(lambda leaf: leaf * np.nan, model.params))
    with pytest.raises(UserError, match="are no numbers"):
        inference.generate_ids(nan, inputs, max_len=4)


def test_a_model_without_its_head_is_refused(gapped):
    headless = dataclasses.replace(gapped, extra={"head_missing": True})
    with pytest.raises(UserError, match="no head that predicts words"):
        inference.fill_mask(headless, "[MASK]")
    with pytest.raises(UserError, match="no head that predicts words"):
        likelihood.sentence_scores(headless, ["w1"])


def test_weights_that_are_no_numbers_are_refused(gapped):
    nan = dataclasses.replace(
        gapped, params=jax.tree.map(lambda leaf: leaf * np.nan, gapped.params)
    )
    with pytest.raises(UserError, match="are no numbers"):
        inference.fill_mask(nan, "w1 [MASK]")
    with pytest.raises(UserError, match="are no numbers"):
        likelihood.sentence_scores(nan, ["w1 w2"])


def test_bytes_of_a_character_are_shown_as_text(tmp_path):
    """A tokenizer that an earlier version converted has no decoder of bytes."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    pieces += [(letter, -1.0) for letter in "▁nave"]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    read = directory.read_tokenizer(tmp_path / "tokenizer.json", "t5", "")
    text = "naïve 😀"
    assert "<0x" in tokenizer.decode(tokenizer.encode(text).ids)
    assert read.decode(read.encode(text).ids) == text


def t5_tokenizer(letters, normalizer=None, *, template=True):
    entries = ["<pad>", "</s>", "<unk>", "▁", *letters]
    pieces = [(piece, -1.0 if number > 2 else 0.0) for number, piece in enumerate(entries)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    return tokenizer


TASKS = [task for suite in SUITES.values() for task in suite]
TRUTHS = {"boolq", "multirc", "wic"}
NOTS = {"mrpc", "qqp", "qnli", "rte", "wnli", "axb", "axg"}


@pytest.mark.parametrize(
    "tokenizer, refused",
    [
        (t5_tokenizer(string.ascii_letters + string.digits + "_."), {}),
        (
            t5_tokenizer(string.printable, normalizers.Lowercase()),
            dict.fromkeys(TRUTHS, "'False' as 'false'"),
        ),
        (
            t5_tokenizer(string.ascii_letters + string.digits + "."),
            dict.fromkeys(NOTS, "'not_|'not_"),
        ),
        (
            t5_tokenizer(string.ascii_letters + "_."),
            {"stsb": "'0.0' as '.'", "copa": "'choice1' as 'choice'"},
        ),
        (
            t5_tokenizer(string.printable, template=False),
            dict.fromkeys({task.name for task in TASKS} - {"wsc", "record"}, "does not end"),
        ),
    ],
)
def test_labels_that_a_t5_cannot_write_are_named_before_finetuning(tokenizer, refused):
    for task in TASKS:
        if task.name not in refused:
            check_labels(task, tokenizer, 1)
            continue
        with pytest.raises(UserError, match=f"--task {task.name}: .*({refused[task.name]})"):
            check_labels(task, tokenizer, 1)


def test_entities_that_a_t5_cannot_write_are_counted_or_refused():
    (record,) = (task for task in TASKS if task.name == "record")
    (wsc,) = (task for task in TASKS if task.name == "wsc")
    entities = [["Bonn"], ["anna"], ["the sea"], ["a hill"]]
    rows = [{"entities": names, "label": names} for names in entities]
    lowercase = t5_tokenizer(string.printable, normalizers.Lowercase())
    lines = []
    check_rows(record, rows, lowercase, lines.append)
    (line,) = lines
    assert "cannot write 1 of the first 4 answers, for example 'Bonn'" in line
    with pytest.raises(UserError, match="--task record: .*'Bonn' as 'bonn'"):
        check_rows(record, rows[:2], lowercase, lines.append)

    # Referents are compared without capitals, but not without their letters.
    rows = [{"span1_text": "Mark", "label": 1}, {"span1_text": "it", "label": 0}]
    check_rows(wsc, rows, lowercase, lines.append)
    with pytest.raises(UserError, match="--task wsc: .*'Mark' as ''"):
        check_rows(wsc, rows, t5_tokenizer("xyz"), lines.append)
    assert len(lines) == 1

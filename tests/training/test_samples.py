"""samples.jsonl: the guesses of each evaluation in the words of the text, once each."""

import json
import types

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from cramjax.training.samples import WINDOW, Samples

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]


def opened(tmp_path, words=WORDS, *, extra_ids=0, n_texts=2, resumed_step=0, keeps=True):
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.add_special_tokens([word for word in words if not word[0].isalpha()])
    (tmp_path / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    dataset = types.SimpleNamespace(
        directory=tmp_path, vocab_size=len(words), extra_ids=extra_ids, special_tokens={}
    )
    return Samples(tmp_path, dataset, n_texts, resumed_step=resumed_step, keeps_evaluation=keeps)


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]


def masked(rows=3):
    """Rows of "the [cat] sat on the [mat]", where the first mask was guessed as "mat"."""
    inputs = np.tile([5, 4, 7, 8, 5, 4], (rows, 1))
    positions = np.tile([5, 1, 0], (rows, 1))
    shown = {"inputs": inputs, "positions": positions, "labels": np.tile([9, 6, 5], (rows, 1))}
    shown["weights"] = np.tile([1.0, 1.0, 0.0], (rows, 1))
    return shown | {"guesses": np.tile([9, 9, 5], (rows, 1))}


def test_masked_tokens_stand_in_their_places(tmp_path):
    samples = opened(tmp_path)
    samples.write(7, {"tokens": 70, "eval_loss": 2.5}, masked())
    samples.close()
    (line,) = lines(tmp_path)
    assert line["step"] == 7 and line["tokens"] == 70 and line["eval_loss"] == 2.5
    assert len(line["texts"]) == 2
    first, second, third, fourth = line["texts"][0]
    assert first == "the" and second == {"truth": "cat", "guess": "mat"}
    assert third == "sat on the" and fourth == {"truth": "mat", "guess": "mat"}


def test_spans_stand_in_the_places_of_their_sentinels(tmp_path):
    words = [*WORDS, "<extra_id_1>", "<extra_id_0>"]
    samples = opened(tmp_path, words, extra_ids=2)
    shown = {
        "inputs": np.array([[5, 11, 8, 10, 3]]),
        "labels": np.array([[11, 6, 7, 10, 5, 9, 3]]),
        "guesses": np.array([[11, 6, 6, 10, 5, 9, 3]]),
    }
    samples.write(1, {"tokens": 10, "eval_loss": float("nan")}, shown)
    (line,) = lines(tmp_path)
    assert line["eval_loss"] is None
    assert line["texts"][0] == [
        "the",
        {"truth": "cat sat", "guess": "cat cat"},
        "on",
        {"truth": "the mat", "guess": "the mat"},
    ]


def test_a_long_row_is_cut(tmp_path):
    samples = opened(tmp_path)
    shown = masked(1)
    shown["inputs"] = np.full((1, 4 * WINDOW), 6)
    shown["positions"] = np.array([[WINDOW + 1, 1, 0]])
    samples.write(1, {"tokens": 1, "eval_loss": 1.0}, shown)
    pieces = lines(tmp_path)[0]["texts"][0]
    assert [piece for piece in pieces if isinstance(piece, dict)] == [
        {"truth": "cat", "guess": "mat"}
    ]
    assert sum(len(piece.split()) for piece in pieces if isinstance(piece, str)) == WINDOW - 1


@pytest.mark.parametrize("keeps, kept", [(True, [1, 2]), (False, [1])])
def test_lines_that_come_again_are_cut(tmp_path, keeps, kept):
    samples = opened(tmp_path)
    for step in (1, 2, 3):
        samples.write(step, {"tokens": step, "eval_loss": 1.0}, masked())
    samples.close()
    opened(tmp_path, resumed_step=2, keeps=keeps).close()
    assert [line["step"] for line in lines(tmp_path)] == kept


def test_nothing_is_written_where_nothing_is_wanted_or_known(tmp_path):
    opened(tmp_path, n_texts=0).write(1, {"eval_loss": 1.0}, masked())
    assert not (tmp_path / "samples.jsonl").exists()
    samples = opened(tmp_path)
    # A run on pairs shows nothing, and reads no tokenizer for it.
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    samples.write(1, {"eval_loss": 1.0}, {})
    samples.close()
    assert not (tmp_path / "samples.jsonl").exists()


def test_what_a_stranger_has_put_there_is_left_alone(tmp_path):
    (tmp_path / "samples.jsonl").mkdir()
    samples = opened(tmp_path)
    samples.write(1, {"eval_loss": 1.0}, masked())
    samples.close()
    assert list((tmp_path / "samples.jsonl").iterdir()) == []

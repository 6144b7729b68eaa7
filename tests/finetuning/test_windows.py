"""Long texts are cut into windows, and what stands in them is found again in the text."""

import dataclasses
import random

import numpy as np
import pytest

from cramjax.data import tokenizers
from cramjax.errors import UserError
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.span_feed import SpanFeed
from cramjax.finetuning.tag_feed import TagFeed
from cramjax.tasks import catalogue, squad
from tests.data.xquad import paragraphs
from tests.finetuning import grammar

SETTINGS = Settings(lr=1e-3, max_length=16, stride=6)
TAGS = dataclasses.replace(catalogue.CONLL, labels=("O", "B-x", "I-x"))


@pytest.fixture(scope="module")
def model():
    return grammar.model()


def tag_feed(model, rows, settings=SETTINGS, split="train"):
    pad_id = model.special["pad"]
    return TagFeed(TAGS, {split: rows}, model.tokenizer, pad_id, settings, None)


def sentences(n, chooser):
    rows = []
    for number in range(n):
        words = chooser.choices([*grammar.WORDS, "catdogbird", "\u200b"], k=chooser.randint(1, 50))
        rows.append({"words": words, "label": chooser.choices(TAGS.labels, k=len(words))})
        rows[-1]["idx"] = number
    return rows


@pytest.mark.parametrize("as_pair", [False, True])
def test_every_word_is_learned_once_at_its_first_token(model, as_pair):
    rows = sentences(40, random.Random(0))
    settings = dataclasses.replace(SETTINGS, single_as_pair=as_pair)
    feed = tag_feed(model, rows, settings)
    plan = feed.plan(range(feed.n_train))
    batch = feed.arrays(plan, plan.need, feed.n_train)

    labelled = batch["labels"] >= 0
    read = [
        (word, tag)
        for row in rows
        for word, tag in zip(row["words"], row["label"], strict=True)
        if word != "\u200b"
    ]
    assert labelled.sum() == len(read)
    assert feed.n_unread("train") == sum(row["words"].count("\u200b") for row in rows)

    # A first token has no "##", and its word has the tag.
    first_tokens = [model.tokenizer.id_to_token(i) for i in batch["tokens"][labelled].tolist()]
    assert not any(token.startswith("##") for token in first_tokens)
    counted = sorted((word[:1], TAGS.labels.index(tag)) for word, tag in read)
    found = zip(first_tokens, batch["labels"][labelled].tolist(), strict=True)
    assert sorted((token[:1], tag) for token, tag in found) == counted
    assert batch["segments"].max() <= feed.n_train
    assert max(len(sequence.ids) for sequence in feed.sequences("train")) == 16


def test_every_word_gets_the_tag_of_its_scores(model):
    rows = sentences(30, random.Random(1))
    feed = tag_feed(model, rows, split="validation")
    batches = feed.eval_batches("validation")
    # Scores that say the labels themselves, and the first tag elsewhere.
    outputs = [np.eye(3, dtype=np.float32)[np.maximum(batch["labels"], 0)] for batch in batches]
    for row, tags in zip(rows, feed.predictions("validation", outputs), strict=True):
        pairs = zip(row["words"], row["label"], strict=True)
        assert tags == ["O" if word == "\u200b" else tag for word, tag in pairs]


def test_rows_without_labels_and_without_words_are_read(model):
    feed = tag_feed(model, [{"words": ["a", "cat"]}, {"words": []}], split="test")
    outputs = [np.zeros((*batch["tokens"].shape, 3)) for batch in feed.eval_batches("test")]
    assert feed.predictions("test", outputs) == [["O", "O"], []]
    with pytest.raises(UserError, match="max_length=4: leaves no room"):
        tag_feed(model, [], dataclasses.replace(SETTINGS, max_length=4))


def spans(feed, tokenizer):
    """Yields (tokens of the answer or None) of each window of a training split."""
    plan = feed.plan(range(feed.n_train))
    batch = feed.arrays(plan, plan.need, feed.n_train)
    flat = batch["tokens"].reshape(-1)
    for first, start, end in zip(batch["first"], batch["starts"], batch["ends"], strict=True):
        yield None if start == first else tokenizer.decode(flat[start : end + 1].tolist())


def question(context, text, start, words="the red ?"):
    answers = [{"text": text, "start": start}] if text else []
    return {"idx": "q", "question": words, "context": context, "label": answers}


def test_windows_hold_whole_answers_or_none(model):
    words = " ".join(random.Random(2).choices(["cat", "dog", "bird", "old"], k=60)).split()
    words[33:36] = ["red", "blue", "boat"]
    context = " ".join(words)
    row = question(context, "red blue boat", context.index("red"))
    feed = SpanFeed(catalogue.SQUAD, {"train": [row]}, model.tokenizer, 0, SETTINGS, None)
    found = list(spans(feed, model.tokenizer))
    assert len(found) == feed.n_train > 5
    assert set(found) == {None, "red blue boat"}

    # One that nothing can be learned from is left out; one without an answer is not.
    rows = [question(context, "bicycle", -1), question(context, "", 0)]
    feed = SpanFeed(catalogue.SQUAD, {"train": rows}, model.tokenizer, 0, SETTINGS, None)
    assert set(spans(feed, model.tokenizer)) == {None}
    assert feed.n_train == len(found)


def test_targets_of_an_evaluation_are_its_answers(model):
    context = "the old boat is red , the young dog is blue ."
    rows = [
        question(context, "red", context.index("red")),
        question(context, "bicycle", -1),
        question(context, "", 0),
    ]
    settings = dataclasses.replace(SETTINGS, max_length=32)
    feed = SpanFeed(catalogue.SQUAD2, {"dev": rows}, model.tokenizer, 0, settings, None)
    (batch,) = feed.eval_batches("dev")
    flat = batch["tokens"].reshape(-1)
    start, end = batch["starts"][0], batch["ends"][0]
    assert model.tokenizer.decode(flat[start : end + 1].tolist()) == "red"
    assert batch["starts"][2] == batch["ends"][2] == batch["first"][2]
    # What is not in its context has no target, and is predicted all the same.
    assert batch["weights"][:3].tolist() == [1, 0, 1] and batch["weights"].sum() == 2

    feed.read({"dev": [{"question": "the red ?", "context": context}]})
    (batch,) = feed.eval_batches("dev")
    assert batch["weights"].sum() == 1 and (batch["starts"] == batch["first"]).all()


def test_training_rows_whose_answers_are_all_elsewhere_are_refused(model):
    rows = [question("the cat", "bicycle", -1)]
    with pytest.raises(UserError, match="SQuAD: no answer of the training rows stands in its"):
        SpanFeed(catalogue.SQUAD, {"train": rows}, model.tokenizer, 0, SETTINGS, None)


def test_a_long_question_is_cut_and_the_answer_is_the_best_of_all_windows(model):
    row = question("a big cat , a young dog . " * 3, "", 0, words="the boat " * 50)
    settings = dataclasses.replace(SETTINGS, max_answer=2, n_best=4)
    feed = SpanFeed(catalogue.SQUAD2, {"test": [row]}, model.tokenizer, 0, settings, None)
    batches = feed.eval_batches("test")
    dog, young = (model.tokenizer.token_to_id(word) for word in ("dog", "young"))
    outputs = []
    for batch in batches:
        scores = np.zeros((*batch["tokens"].shape, 2), np.float32)
        scores[..., 0] = 3.0 * (batch["tokens"] == young)
        scores[..., 1] = 2.0 * (batch["tokens"] == dog)
        outputs.append(scores)
        rows_with_question = (batch["tokens"] == model.tokenizer.token_to_id("boat")).sum(axis=1)
        assert rows_with_question.max() > 0
    (best, second, *others) = feed.n_best("test", outputs)[0]
    assert best == {"text": "young dog", "score": 5.0, "no_answer": -5.0}
    assert second["score"] == 3.0 and len(others) == 2
    assert feed.predictions("test", outputs) == [best]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
@pytest.mark.parametrize("language", ["ar", "th", "hi", "zh"])
def test_answers_in_any_script_are_found_again(root, language, kind):
    texts = paragraphs(root, language)[:60]
    options = {"lowercase": True, "ascii_only": False}
    tokenizer, _ = tokenizers.train(kind, texts, vocab_size=1500, **options)
    path = root.parent / "shared" / "data" / "qa" / f"xquad.{language}.json.gz"
    rows = squad.read(path, lambda _: None)[:150]

    settings = dataclasses.replace(SETTINGS, max_length=192, stride=64, max_answer=100)
    feed = SpanFeed(catalogue.SQUAD, {"train": rows}, tokenizer, 0, settings, None)
    plan = feed.plan(range(feed.n_train))
    batch = feed.arrays(plan, plan.need, feed.n_train)
    # The same windows without labels, and scores that say where the answers are.
    seen = SpanFeed(catalogue.SQUAD, {"test": rows}, tokenizer, 0, settings, None)
    marks = np.zeros((batch["tokens"].size, 2), np.float32)
    found_in = batch["starts"] != batch["first"]
    marks[batch["starts"][found_in], 0] = 1.0
    marks[batch["ends"][found_in], 1] = 1.0
    by_window = marks.reshape(*batch["tokens"].shape, 2)
    outputs = {}
    for window, (row, offset) in enumerate(plan.places):
        outputs[window] = by_window[row, offset:]

    n_found = 0
    for number, row in enumerate(rows):
        gold = row["label"][0]["text"]
        windows = [w for w, (n, _) in enumerate(seen._windows["test"]) if n == number]
        for window in windows:
            if not found_in[window]:
                continue
            places = seen._windows["test"][window][1]
            (score, start, end) = max(seen._pieces(places, outputs[window][: len(places)]))
            text = row["context"][start:end]
            assert score == 2.0 and gold.strip() in text
            # A token may reach over an end of the answer, into its own word only.
            assert len(text.split()) == len(gold.split()) or kind == "unigram"
            n_found += 1
    assert n_found >= len(rows)

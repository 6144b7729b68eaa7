"""Rows as models read them, and predictions as rows mean them."""

import numpy as np
import pytest

from cramjax.glue import inputs, local_files
from cramjax.glue.tasks import SUITES, find_tasks
from tests.glue import distributed

TASKS = [(suite, task) for suite in SUITES for task in SUITES[suite]]


def first(name, suite="superglue"):
    (task,) = find_tasks([name], suite)
    return task, distributed.FIRST_ROWS[task.suite, task.name]


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("boolq", [("is it", "It is.")]),
        ("cb", [("It was a dog.", "It was an animal.")]),
        ("multirc", [("Susan had a party.", "Who? Susan")]),
        ("wic", [("Come to my * place * later.", "No * place * for it.")]),
        ("wsc", [("* Mark * told Pete many lies. # He # was wrong.", None)]),
        (
            "copa",
            [
                ("I fell. What was the cause of this?", "It was icy."),
                ("I fell. What was the cause of this?", "I ran home."),
            ],
        ),
    ],
)
def test_what_an_encoder_reads(name, pairs):
    task, row = first(name)
    (sample,) = inputs.samples(task, row)
    assert list(sample.pairs) == pairs
    assert sample.label == row["label"]


def test_record_is_a_sample_for_each_entity():
    task, row = first("record")
    found = inputs.samples(task, row)
    passage = "Ann met Bob in Rome. Ann left"

    assert [sample.pairs for sample in found] == [
        ((passage, "Ann went away"),),
        ((passage, "Bob went away"),),
    ]
    assert [sample.label for sample in found] == [1, 0]
    assert inputs.decide(task, row, np.asarray([[0.0, 1.0, 0], [0.0, 3.0, 0]])) == "Bob"


def test_spans_of_wsc_may_stand_in_any_order_and_have_several_words():
    task, row = first("wsc")
    row = row | {
        "text": "He saw the old man .",
        "span1_text": "the old man",
        "span1_index": 2,
        "span2_text": "He",
        "span2_index": 0,
    }

    assert inputs.samples(task, row)[0].pairs[0][0] == "# He # saw * the old man * ."
    assert inputs.source_text(task, row) == "wsc: *He* saw the old man ."


def test_decisions():
    assert inputs.decide(*first("cola", "glue"), np.asarray([[0.1, 0.2, -1e9]])) == 1
    assert inputs.decide(*first("stsb", "glue"), np.asarray([[2.5, -1e9, -1e9]])) == 2.5
    assert inputs.decide(*first("copa"), np.asarray([[3.0, 4.0, -1e9]])) == 1


@pytest.mark.parametrize(
    ("name", "suite", "text"),
    [
        ("cola", "glue", 'cola sentence: He said "go.'),
        ("mnli", "glue", 'mnli hypothesis: She refused . premise: She said "no .'),
        ("qnli", "glue", "qnli question: Who? sentence: He did."),
        ("boolq", "superglue", "boolq passage: It is. question: is it"),
        (
            "copa",
            "superglue",
            "copa choice1: It was icy. choice2: I ran home. premise: I fell. question: cause",
        ),
        (
            "multirc",
            "superglue",
            "multirc question: Who? answer: Susan paragraph: Susan had a party.",
        ),
        (
            "wic",
            "superglue",
            "wic sentence1: Come to my place later. sentence2: No place for it. word: place",
        ),
        ("wsc", "superglue", "wsc: Mark told Pete many lies. *He* was wrong."),
        (
            "record",
            "superglue",
            "record query: @placeholder went away entities: Ann, Bob "
            "passage: Ann met Bob in Rome. Ann left",
        ),
    ],
)
def test_what_a_t5_reads(name, suite, text):
    assert inputs.source_text(*first(name, suite)) == text


@pytest.mark.parametrize(("suite", "task"), TASKS, ids=lambda value: getattr(value, "name", value))
def test_every_label_is_a_text_and_back(suite, task):
    row = distributed.FIRST_ROWS[suite, task.name]
    labels = range(len(task.labels)) if task.labels else [row["label"]]
    for label in labels:
        for text in inputs.target_texts(task, row | {"label": label}):
            answer = inputs.parse(task, row, f" {text} ")
            if task.kind == "entities":
                assert answer in label
            else:
                assert answer == pytest.approx(label, abs=0.1)

    assert inputs.parse(task, row, "") is None

    if task.name != "wsc":
        assert inputs.parse(task, row, "potato") is None


def test_scores_are_rounded_to_fifths():
    task, row = first("stsb", "glue")
    for score, text in ((0.0, "0.0"), (0.29, "0.2"), (2.7, "2.8"), (4.75, "4.8"), (5.0, "5.0")):
        assert inputs.target_texts(task, row | {"label": score}) == [text]

    assert inputs.parse(task, row, "3.4") == 3.4
    assert inputs.parse(task, row, "3.") is None
    assert inputs.parse(task, row, "-1") is None


def test_a_t5_learns_only_right_referents_and_may_name_them_more_or_less_fully():
    task, row = first("wsc")
    assert inputs.target_texts(task, row) == ["Mark"]
    assert inputs.target_texts(task, row | {"label": 0}) == []

    row = row | {"span1_text": "the old man"}
    for text in ("The old man", "old man.", "man"):
        assert inputs.parse(task, row, text) == 1
    assert inputs.parse(task, row, "Pete") == 0
    assert inputs.parse(task, row, "the") is None
    assert inputs.parse(task, row | {"span1_text": "Bob"}, "Bob's hat") == 0


def test_every_row_of_the_real_tasks_is_readable(root):
    folder = root.parent / "shared" / "data" / "superglue"
    if not folder.is_dir():
        pytest.skip("needs the real tasks")
    for name in ("wic", "wsc", "copa", "multirc"):
        (task,) = find_tasks([name])
        for row in local_files.read(task, folder, "validation", print):
            assert inputs.samples(task, row)[0].pairs
            assert inputs.source_text(task, row)


def test_marks_of_wic_stand_around_the_word(root):
    folder = root.parent / "shared" / "data" / "superglue"
    if not folder.is_dir():
        pytest.skip("needs the real tasks")
    (task,) = find_tasks(["wic"])
    rows = local_files.read(task, folder, "validation", print)
    marked = []
    words = []
    for row in rows:
        for text in inputs.samples(task, row)[0].pairs[0]:
            marked.append(text.split("*")[1].strip().lower())
            words.append(row["word"])

    # Inflected forms begin alike, but for a few such as "rose".
    assert sum(a[:2] == b[:2] for a, b in zip(marked, words, strict=True)) > 0.95 * len(words)

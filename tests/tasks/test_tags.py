"""Entities and their scores are those of conlleval and seqeval's default mode."""

import hypothesis
import pytest
from hypothesis import strategies as st

from cramjax.tasks import tags

TAGS = ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("PER", "LOC"))]
sentences = st.lists(st.sampled_from(TAGS), max_size=8)


@pytest.mark.parametrize(
    ("sentence", "entities"),
    [
        # seqeval's own example of get_entities.
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        # An I- that nothing precedes begins an entity, and so does one of another type.
        ("I-PER I-PER O I-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("B-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("B-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),
        # IOBES and BILOU.
        ("S-PER B-LOC I-LOC E-LOC", [("PER", 0, 0), ("LOC", 1, 3)]),
        ("U-PER B-LOC L-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2), ("LOC", 3, 3)]),
        ("E-PER E-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 1)]),
        ("", []),
    ],
)
def test_entities(sentence, entities):
    assert tags.entities(sentence.split()) == entities


def test_the_documented_example_of_seqeval():
    gold = ["O O O B-MISC I-MISC I-MISC O".split(), "B-PER I-PER O".split()]
    predicted = ["O O B-MISC I-MISC I-MISC I-MISC O".split(), "B-PER I-PER O".split()]
    scores = tags.scores(gold, predicted)
    half = {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    nothing = {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    right = {"precision": 1, "recall": 1, "f1": 1, "support": 1}
    assert scores == {"": half, "MISC": nothing, "PER": right}


@hypothesis.given(sentences)
def test_iob2_has_the_same_entities_and_nothing_to_repair(sentence):
    written = tags.as_iob2(sentence)
    assert tags.entities(written) == tags.entities(sentence)
    assert tags.as_iob2(written) == written
    assert tags.n_repaired([written]) == 0


@hypothesis.given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=4))
def test_scores_are_shares_and_symmetric(pairs):
    gold, predicted = [], []
    for first, second in pairs:
        n = min(len(first), len(second))
        gold.append(first[:n])
        predicted.append(second[:n])
    forth, back = tags.scores(gold, predicted), tags.scores(predicted, gold)
    assert forth.keys() == back.keys()
    for kind in forth:
        assert forth[kind]["precision"] == back[kind]["recall"]
        assert abs(forth[kind]["f1"] - back[kind]["f1"]) < 1e-12
        assert 0 <= forth[kind]["f1"] <= 1
    assert tags.scores(gold, gold)[""]["f1"] == float(any(map(tags.entities, gold)))


@pytest.mark.parametrize(
    ("sentence", "scheme"),
    [
        ("B-PER I-PER O", "IOB2"),
        ("I-PER I-PER B-PER O", "IOB1"),
        ("B-PER I-PER O I-LOC", "IOB2"),
        ("B-PER E-PER", "BIOES"),
        ("U-PER O", "BIOES"),
        ("O O", "IOB2"),
    ],
)
def test_the_scheme_is_found(sentence, scheme):
    assert tags.scheme([sentence.split()]) == scheme


def test_repairs_are_counted():
    assert tags.n_repaired(["B-PER I-PER O I-LOC I-LOC".split(), "I-PER".split()]) == 2
    assert not tags.are_entities(["NN", "O"])
    assert tags.are_entities(["O", "B-x"])

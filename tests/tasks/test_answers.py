"""Scores of answers are those of SQuAD's scripts."""

import hypothesis
import pytest
from hypothesis import strategies as st

from cramjax.glue import metrics
from cramjax.tasks import answers

texts = st.sampled_from(["", "a cat", "The cat!", "cat", "dog house", "the", "a dog house"])


@pytest.mark.parametrize(
    ("answer", "text", "exact", "f1"),
    [
        ("The Cat.", "cat", 1, 1),
        ("Denver Broncos", "the Denver  Broncos!", 1, 1),
        ("Denver Broncos", "Broncos", 0, 2 / 3),
        ("a b c d", "b b c", 0, 2 * (2 / 3) * (2 / 3) / (4 / 3)),
        ("1976", "1999", 0, 0),
        # An article alone is nothing; the first script gives no F1 for nothing.
        ("the", "a", 1, 0),
    ],
)
def test_one_answer(answer, text, exact, f1):
    assert metrics.exact(answer, text) == exact
    assert metrics.word_f1(answer, text) == pytest.approx(f1)


def test_the_documented_examples():
    """The examples of the metric cards `squad` and `squad_v2`, which wrap the scripts."""
    gold = [["1976"], ["Beyoncé and Bruno Mars"], ["climate change"]]
    found = ["1976", "Beyonce", "climate change"]
    assert answers.scores_v1(gold, found)["exact_match"] == pytest.approx(200 / 3)
    scores = answers.scores_v2(gold, found, [0.0, 0.0, 0.0])
    for name in ("exact_match", "f1", "best_exact", "best_f1", "has_answer_f1"):
        assert scores[name] == pytest.approx(200 / 3)
    assert scores["best_f1_threshold"] == 0.0
    assert "no_answer_f1" not in scores
    scores = answers.scores_v2([["1976"]], ["1999"], [0.0])
    assert scores["best_f1"] == scores["f1"] == 0


def test_the_best_of_several_answers_counts():
    scores = answers.scores_v1([["a red cat", "cat"]], ["The cat"])
    assert scores == {"exact_match": 100, "f1": 100}


def test_no_answer_is_right_where_there_is_none():
    gold = [[], ["cat"], [], ["dog"]]
    found = ["x", "cat", "y", "x"]
    scores = answers.scores_v2(gold, found, [1.0, -1.0, -2.0, -0.5])
    # At 0 the first and the second are right. A threshold of -1 gives 2 as well, but -2 < -1.
    assert scores["exact_match"] == 50
    assert scores["no_answer_f1"] == 50 and scores["has_answer_exact_match"] == 50
    assert answers.final_texts({"p": "x", "q": "y"}, {"p": 1.0, "q": 0.5}, 0.5) == {
        "p": "",
        "q": "y",
    }


def test_without_odds_there_is_nothing_to_choose():
    """Equal odds would let the order of the questions choose what is answered."""
    gold = [[], ["dog"], [], ["b"], ["cat"]]
    scores = answers.scores_v2(gold, ["x", "x", "", "x", "cat"], None)
    assert scores["f1"] == scores["best_f1"] == scores["exact_match"] == scores["best_exact"] == 40
    assert scores["no_answer_f1"] == 50 and scores["has_answer_f1"] == pytest.approx(100 / 3)
    assert not [name for name in scores if "threshold" in name]
    assert answers.scores_v2([["dog"], []], ["x", "x"], None)["best_f1"] == 0


@hypothesis.given(
    st.lists(
        st.tuples(st.lists(texts, max_size=2), texts, st.integers(-3, 3)), min_size=1, max_size=7
    )
)
def test_the_threshold_is_the_best_of_all(rows):
    """Every threshold between the odds, tried one by one, scores no more, if odds differ."""
    rows = [(gold, text, odd + 0.1 * number) for number, (gold, text, odd) in enumerate(rows)]
    gold, found, odds = zip(*rows, strict=True)
    scores = answers.scores_v2(gold, found, odds)

    def at(threshold, measure):
        total = 0.0
        for known, text, odd in rows:
            right = [answer for answer in known if metrics.normal(answer)] or [""]
            kept = "" if odd > threshold else text
            total += max(measure(answer, kept) for answer in right)
        return 100 * total / len(rows)

    def f1(answer, text):
        return metrics.word_f1(answer, text, empty=1.0)

    # A text without words ("the") is an answer for the script, so it costs before it pays.
    hypothesis.assume(all(metrics.normal(text) or not text for text in found))
    tried = [-99.0, *odds]
    assert scores["best_f1"] == pytest.approx(max(at(threshold, f1) for threshold in tried))
    assert scores["best_exact"] == pytest.approx(max(at(t, metrics.exact) for t in tried))
    assert scores["f1"] == pytest.approx(at(0.0, f1))

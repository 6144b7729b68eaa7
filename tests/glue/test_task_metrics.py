"""Metrics against figures worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.glue import metrics
from cramjax.glue.tasks import find_tasks


def score(name, labels, predictions, **more):
    (task,) = find_tasks([name], more.pop("suite", None))
    rows = [{"label": label} for label in labels]
    for key, values in more.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    return metrics.score(task, rows, predictions)


def test_binary_tasks():
    # 2 right of the 3 called positive, of 4 that are.
    found = score("mrpc", [1, 1, 1, 1, 0], [1, 1, 0, 0, 1])
    assert found == pytest.approx({"f1": 100 * 4 / 7, "accuracy": 40.0})
    # tp 2, tn 1, fp 1, fn 1.
    assert score("cola", [1, 1, 1, 0, 0], [1, 1, 0, 0, 1])["matthews"] == pytest.approx(
        100 * (2 - 1) / math.sqrt(3 * 3 * 2 * 2)
    )
    assert score("cola", [1, 0], [1, 1])["matthews"] == 0.0


def test_macro_f1_counts_classes_nobody_predicts():
    found = score("cb", [0, 0, 1, 2], [0, 0, 1, 1])
    assert found == pytest.approx({"accuracy": 75.0, "macro_f1": 100 * (1 + 2 / 3 + 0) / 3})


def test_correlations():
    assert score("stsb", [0.0, 1.0, 2.0], [0.0, 1.0, 4.0])["spearman"] == pytest.approx(100.0)
    assert score("stsb", [0.0, 1.0, 2.0], [0.0, 1.0, 4.0])["pearson"] == pytest.approx(
        100 * 4 / math.sqrt(2 * 26 / 3)
    )
    assert score("stsb", [0.0, 1.0, 2.0], [3.0, 3.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}


def test_multirc_counts_answers_and_whole_questions():
    found = score("multirc", [1, 0, 1, 1], [1, 0, 1, 0], group=[(0, 0), (0, 0), (0, 1), (0, 1)])
    assert found == pytest.approx({"f1a": 80.0, "exact_match": 50.0})


def test_record_takes_the_best_of_the_right_entities():
    labels = [["the White House", "Obama"], ["Ann Lee"], ["Rome"]]
    found = score("record", labels, ["White House.", "Ann", "Paris"])
    assert found == pytest.approx({"f1": 100 * (1 + 2 / 3 + 0) / 3, "exact_match": 100 / 3})


def test_gender_parity_is_over_pairs():
    found = score("axg", [0, 0, 1, 1], [0, 1, 1, 1], group=[1, 1, 2, 2])
    assert found == pytest.approx({"accuracy": 75.0, "gender_parity": 50.0})


def test_as_many_predictions_as_rows():
    with pytest.raises(ValueError, match="1 predictions of 2 rows"):
        score("cola", [1, 0], [1])


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 2, None])),
        min_size=1,
        max_size=30,
    )
)
def test_no_answer_is_a_wrong_answer(rows):
    labels, predictions = zip(*rows, strict=True)
    right = sum(label == value for label, value in rows)
    assert score("mnli", labels, predictions)["accuracy"] == pytest.approx(100 * right / len(rows))


@pytest.mark.parametrize(
    ("name", "label"), [("cola", 1), ("mrpc", 1), ("record", ["Ann"]), ("multirc", 1), ("cb", 1)]
)
def test_nothing_but_no_answers_scores_nothing(name, label):
    found = score(name, [label, label], [None, None], group=[0, 0])
    assert set(found.values()) == {0.0}

"""The official metrics of GLUE and SuperGLUE in percent, computed by scikit-learn and SciPy.

A prediction has the form of a row's `label`: a class, a float, or for ReCoRD an entity. None stands
for an output that is no answer, and counts as wrong.
"""

from __future__ import annotations

import collections
import math
import re
import string
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cramjax.glue.tasks import Row, Task

Rows = Sequence[Row]
Predictions = Sequence[Any]

NO_NUMBER = -1.0
"""Stands for a text that is no number, where a number is wanted (arXiv 1910.10683: predictions
outside the label set are wrong)."""


def score(task: Task, rows: Rows, predictions: Predictions) -> dict[str, float]:
    """Returns every metric of `task` in percent, from one prediction for each row."""
    if len(rows) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions of {len(rows)} rows")
    legal = [
        _wrong(task, row) if prediction is None else prediction
        for row, prediction in zip(rows, predictions, strict=True)
    ]
    return {name: 100.0 * METRICS[name](task, rows, legal) for name in task.metrics}


def _wrong(task: Task, row: Row) -> Any:
    """Returns a wrong prediction, to stand for an output that is no answer."""
    if task.kind == "entities":
        return ""
    if task.labels is None:
        return NO_NUMBER
    return (row["label"] + 1) % len(task.labels)


def _labels(rows: Rows) -> list[Any]:
    return [row["label"] for row in rows]


def _accuracy(task: Task, rows: Rows, predictions: Predictions) -> float:
    return float(np.mean([p == label for p, label in zip(predictions, _labels(rows), strict=True)]))


def _f1(task: Task, rows: Rows, predictions: Predictions) -> float:
    """Returns F1 of class 1; for ReCoRD the mean over queries of the best entity's F1 of words."""
    if task.kind == "entities":
        return _mean_best(word_f1, rows, predictions)
    return _f1_score(rows, predictions)


def _macro_f1(task: Task, rows: Rows, predictions: Predictions) -> float:
    return _f1_score(rows, predictions, labels=list(range(task.n_classes)), average="macro")


def _f1_over_answers(task: Task, rows: Rows, predictions: Predictions) -> float:
    """Returns F1a of MultiRC: over all answers together (arXiv 1905.00537, section 3)."""
    return _f1_score(rows, predictions)


def _f1_score(rows: Rows, predictions: Predictions, **options: Any) -> float:
    from sklearn.metrics import f1_score

    # A class that is never predicted scores 0.
    options["zero_division"] = 0.0
    return float(f1_score(_labels(rows), predictions, **options))


def _matthews(task: Task, rows: Rows, predictions: Predictions) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(_labels(rows), predictions))


def _pearson(task: Task, rows: Rows, predictions: Predictions) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, rows, predictions)


def _spearman(task: Task, rows: Rows, predictions: Predictions) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, rows, predictions)


def _correlation(function: Callable[..., Any], rows: Rows, predictions: Predictions) -> float:
    with warnings.catch_warnings():
        # A constant prediction has no correlation: 0, as on the leaderboard.
        warnings.simplefilter("ignore")
        labels = np.asarray(_labels(rows), float)
        value = function(labels, np.asarray(predictions, float)).statistic
    return 0.0 if math.isnan(value) else float(value)


def _exact_match(task: Task, rows: Rows, predictions: Predictions) -> float:
    """Returns the share of questions (MultiRC) or queries (ReCoRD) that are right.

    A question is right if every answer is, a query if the entity is one of the right ones.
    """
    if task.kind == "entities":
        return _mean_best(exact, rows, predictions)
    questions: dict[Any, list[bool]] = collections.defaultdict(list)
    for row, prediction in zip(rows, predictions, strict=True):
        questions[row["group"]].append(prediction == row["label"])
    return float(np.mean([all(answers) for answers in questions.values()]))


def _gender_parity(task: Task, rows: Rows, predictions: Predictions) -> float:
    """Returns AX-g's share of pairs with the same prediction (arXiv 1804.09301).

    The sentences of a pair differ only in a pronoun's gender.
    """
    pairs: dict[Any, set[Any]] = collections.defaultdict(set)
    for row, prediction in zip(rows, predictions, strict=True):
        pairs[row["group"]].add(prediction)
    return float(np.mean([len(values) == 1 for values in pairs.values()]))


def _mean_best(measure: Callable[[str, str], float], rows: Rows, predictions: Predictions) -> float:
    """Returns the mean over rows of `measure` against the best of the right answers."""
    values = []
    for row, prediction in zip(rows, predictions, strict=True):
        answers = row["label"]
        values.append(max((float(measure(answer, prediction)) for answer in answers), default=0.0))
    return float(np.mean(values))


def exact(answer: str, text: str) -> float:
    """Returns 1.0 if `text` is `answer` after normalisation, else 0.0."""
    return float(normal(answer) == normal(text))


def word_f1(answer: str, text: str, *, empty: float = 0.0) -> float:
    """Returns F1 of the words two answers share, as in SQuAD (arXiv 1606.05250, section 6.1).

    Args:
        answer: the right one.
        text: another.
        empty: the score if neither has words.
    """
    words = normal(answer).split()
    others = normal(text).split()
    if not words and not others:
        return empty
    n_shared = (collections.Counter(words) & collections.Counter(others)).total()
    return 2 * n_shared / (len(words) + len(others)) if n_shared else 0.0


def normal(text: str) -> str:
    """Returns the text in lower case without punctuation and articles, with single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


METRICS: dict[str, Callable[..., float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "f1a": _f1_over_answers,
    "exact_match": _exact_match,
    "gender_parity": _gender_parity,
}
"""name → function (task, rows, predictions) → share in [0, 1] (correlations in [-1, 1])."""

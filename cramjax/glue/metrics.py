"""The official metrics of GLUE and SuperGLUE, by scikit-learn and SciPy; all of them in percent.

A prediction is what a row's `label` is: a class, a float, for ReCoRD an entity; None is an answer that is none, and counts as wrong.
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

# What text-to-text models get for a text that is no number (arXiv 1910.10683: predictions outside the label set are wrong).
NO_NUMBER = -1.0


def score(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> dict[str, float]:
    """Every metric of `task` in percent: one prediction a row."""
    if len(rows) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions of {len(rows)} rows")
    return {
        name: 100.0 * METRICS[name](task, rows, _legal(task, rows, predictions))
        for name in task.metrics
    }


def _legal(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> list[Any]:
    """`predictions` with a wrong one in the place of None."""

    def wrong(row):
        if task.kind == "entities":
            return ""
        return NO_NUMBER if task.kind == "regression" else (row["label"] + 1) % len(task.labels)

    return [
        wrong(row) if value is None else value for row, value in zip(rows, predictions, strict=True)
    ]


def _labels(rows):
    return [row["label"] for row in rows]


def _accuracy(_, rows, predictions):
    return float(
        np.mean([value == label for value, label in zip(predictions, _labels(rows), strict=True)])
    )


def _f1(task, rows, predictions):
    if task.kind == "entities":
        return float(
            np.mean(
                [
                    _best(_token_f1, row["label"], value)
                    for row, value in zip(rows, predictions, strict=True)
                ]
            )
        )
    from sklearn.metrics import f1_score

    return float(f1_score(_labels(rows), predictions, zero_division=0.0))


def _macro_f1(task, rows, predictions):
    from sklearn.metrics import f1_score

    classes = list(range(len(task.labels)))
    return float(
        f1_score(_labels(rows), predictions, labels=classes, average="macro", zero_division=0.0)
    )


def _matthews(_, rows, predictions):
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(_labels(rows), predictions))


def _correlation(name):
    def correlation(_, rows, predictions):
        from scipy import stats

        with warnings.catch_warnings():
            # A constant prediction has no correlation: 0, as the leaderboard has it.
            warnings.simplefilter("ignore")
            value = getattr(stats, name)(
                np.asarray(_labels(rows), float), np.asarray(predictions, float)
            ).statistic
        return 0.0 if math.isnan(value) else float(value)

    return correlation


def _f1_over_answers(_, rows, predictions):
    """F1a of MultiRC: over all answers together (arXiv 1905.00537, section 3)."""
    from sklearn.metrics import f1_score

    return float(f1_score(_labels(rows), predictions, zero_division=0.0))


def _exact_match(task, rows, predictions):
    """MultiRC: share of questions with every answer right. ReCoRD: share of entities that are one of the right ones."""
    if task.kind == "entities":
        return float(
            np.mean(
                [
                    _best(_same, row["label"], value)
                    for row, value in zip(rows, predictions, strict=True)
                ]
            )
        )
    questions: dict[Any, list[bool]] = collections.defaultdict(list)
    for row, value in zip(rows, predictions, strict=True):
        questions[row["group"]].append(value == row["label"])
    return float(np.mean([all(answers) for answers in questions.values()]))


def _gender_parity(_, rows, predictions):
    """AX-g: share of pairs of sentences, alike but for a pronoun's gender, with the same prediction (arXiv 1804.09301)."""
    pairs: dict[Any, set[Any]] = collections.defaultdict(set)
    for row, value in zip(rows, predictions, strict=True):
        pairs[row["group"]].add(value)
    return float(np.mean([len(values) == 1 for values in pairs.values()]))


def _best(measure: Callable[[str, str], float], answers: Sequence[str], value: str) -> float:
    return max((float(measure(answer, value)) for answer in answers), default=0.0)


def _same(answer: str, value: str) -> bool:
    return _normal(answer) == _normal(value)


def _token_f1(answer: str, value: str) -> float:
    """F1 of the words two answers share, as SQuAD counts it (arXiv 1606.05250, section 6.1)."""
    words, others = _normal(answer).split(), _normal(value).split()
    shared = sum((collections.Counter(words) & collections.Counter(others)).values())
    return 2 * shared / (len(words) + len(others)) if shared else 0.0


def _normal(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


METRICS: dict[str, Callable[..., float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
    "f1a": _f1_over_answers,
    "exact_match": _exact_match,
    "gender_parity": _gender_parity,
}
"""name → function (task, rows, predictions) → share in [0, 1] (correlations in [-1, 1])."""

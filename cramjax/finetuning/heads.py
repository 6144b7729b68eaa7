"""The kinds of heads as one table: rows in, predictions, scores and files out.

A head says how its rows are fed to an encoder, what the network learns, and what its predictions
are worth. A T5 has no head: it reads the rows of any kind that `glue.inputs` can write as text.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cramjax.errors import UserError
from cramjax.finetuning.classification import (
    Classification,
    Embedding,
    EncoderObjective,
    SpanAnswers,
    Tagging,
)
from cramjax.finetuning.embedding_feed import EmbeddingFeed
from cramjax.finetuning.feed import EncoderFeed, PackedFeed, n_outputs
from cramjax.finetuning.span_feed import SpanFeed
from cramjax.finetuning.tag_feed import TagFeed
from cramjax.glue import metrics
from cramjax.glue.tasks import OTHER, Row, Task
from cramjax.models import classifier
from cramjax.tasks import answers, metric_names, retrieval, tags

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderPart:
    """The way of an encoder to one kind of answer.

    Attributes:
        network: `ClassifierConfig.head`.
        feed: (task, splits, tokenizer, pad_id, settings, max_positions) → the examples.
        objective: (network, precision) → the functions that learn them.
        n_outputs: task → scores of the network; 0 for an embedding.
    """

    network: str
    feed: Callable[..., PackedFeed]
    objective: Callable[..., EncoderObjective]
    n_outputs: Callable[[Task], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """One kind of answer.

    Attributes:
        encoder: the way of an encoder there; None if only a T5 gives such answers.
        score: (task, rows, predictions) → metrics, in percent unless their name says otherwise.
        text: (task, label or prediction) → how a table shows it.
        decisions: predictions of all rows → what was decided, to find a model that has one answer
            for everything.
        for_t5: a T5 can read its rows.
    """

    encoder: EncoderPart | None
    score: Callable[[Task, Sequence[Row], Sequence[Any]], Scores]
    text: Callable[[Task, Any], str]
    decisions: Callable[[Sequence[Any]], list[Any]] = list
    for_t5: bool = True


def head_of(task: Task) -> Head:
    """Returns the head that answers a task."""
    return HEADS[task.kind]


def encoder_part(task: Task) -> EncoderPart:
    """Returns the way of an encoder to the answers of a task.

    Raises:
        UserError: if only a T5 gives them.
    """
    part = head_of(task).encoder
    if part is None:
        raise UserError(f"--task {task.name}: its answers are free text; take a T5")
    return part


def check(task: Task, is_t5: bool) -> None:
    """Raises UserError if the model cannot have the head of a task."""
    head = head_of(task)
    if is_t5 and not head.for_t5:
        raise UserError(
            f"--task {task.name}: is one of {task.kind}; a T5 has none, take an encoder"
        )
    if is_t5 and task.suite == OTHER and task.kind == "regression":
        raise UserError(
            f"--task {task.name}: a T5 writes scores of STS-B only (0 to 5); take an encoder"
        )
    if not is_t5:
        encoder_part(task)


def is_constant(task: Task, predictions: Sequence[Any]) -> bool:
    """Returns whether all is answered alike, as after a failed finetuning."""
    decided = head_of(task).decisions(predictions)
    if len(decided) < 2:
        return False
    return bool(np.all([value == decided[0] for value in decided]))


def _score_text(task: Task, value: Any) -> str:
    """Returns a class by its name, an entity, or a number."""
    if value is None:
        return ""
    if task.kind == "entities":
        # ReCoRD's rows have several right entities.
        return " | ".join(value) if isinstance(value, list) else value
    if isinstance(value, float):
        return f"{value:.3f}"
    return task.labels[value] if task.labels else str(value)


def _tag_scores(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> Scores:
    """Returns scores of all entities and of each type, and the accuracy of the words."""
    gold = [row["label"] for row in rows]
    words = list(zip(itertools.chain(*gold), itertools.chain(*predictions), strict=True))
    n_right = sum(right == guess for right, guess in words)
    accuracy = 100.0 * n_right / max(1, len(words))
    if "f1" not in task.metrics:
        return {"accuracy": accuracy}

    by_kind = tags.scores(gold, predictions)
    nothing = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    found = {name: 100.0 * by_kind[""][name] for name in ("f1", "precision", "recall")}
    found["accuracy"] = accuracy
    # Every seed has the same metrics, whatever types it found.
    kinds = sorted({tag.partition("-")[2] for tag in task.labels or ()} - {""})
    for kind in kinds:
        for name in nothing:
            found[metric_names.of_type(name, kind)] = 100.0 * by_kind.get(kind, nothing)[name]
    return found


def _tag_decisions(predictions: Sequence[Any]) -> list[Any]:
    return list(itertools.chain(*predictions))


def _tag_text(task: Task, value: Any) -> str:
    del task
    return " ".join(value)


def _span_scores(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> Scores:
    gold = [_texts_of(row) for row in rows]
    texts = [prediction["text"] for prediction in predictions]
    if "best_f1" not in task.metrics:
        return answers.scores_v1(gold, texts)
    # A T5 gives no odds.
    odds = [prediction["no_answer"] for prediction in predictions if "no_answer" in prediction]
    return answers.scores_v2(gold, texts, odds or None)


def _texts_of(row: Row) -> list[str]:
    """Returns the right answers to a question."""
    return [answer["text"] for answer in row["label"]]


def _span_text(task: Task, value: Any) -> str:
    """Returns an answer, or all right ones, on one line."""
    del task
    texts = [answer["text"] for answer in value] if isinstance(value, list) else [value["text"]]
    return " | ".join(" ".join(text.split()) for text in texts)


def _span_decisions(predictions: Sequence[Any]) -> list[Any]:
    return [prediction["text"] for prediction in predictions]


def _text_scores(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> Scores:
    del task
    return answers.scores_v1([[row["label"]] for row in rows], predictions)


def _plain_text(task: Task, value: Any) -> str:
    del task
    return " ".join(value.split())


def _embedding_scores(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> Scores:
    """Returns correlations with the labels, or those of the ranks where there are no labels."""
    if "rank" in predictions[0]:
        return retrieval.rank_scores([prediction["rank"] for prediction in predictions])
    cosines = _cosines(predictions)
    return {name: 100.0 * metrics.METRICS[name](task, rows, cosines) for name in task.metrics}


def _cosines(predictions: Sequence[Any]) -> list[Any]:
    return [prediction["cosine"] for prediction in predictions]


def _embedding_text(task: Task, value: Any) -> str:
    """Returns the label of a pair, its rank, or its cosine."""
    del task
    if not isinstance(value, dict):
        return f"{value:g}"
    return str(value["rank"]) if "rank" in value else f"{value['cosine']:.4f}"


_SEQUENCE = Head(
    encoder=EncoderPart(
        network=classifier.SEQUENCE,
        feed=EncoderFeed,
        objective=Classification,
        n_outputs=n_outputs,
    ),
    score=metrics.score,
    text=_score_text,
)
_TAGS = Head(
    encoder=EncoderPart(
        network=classifier.TOKEN,
        feed=TagFeed,
        objective=Tagging,
        n_outputs=lambda task: len(task.labels or ()),
    ),
    score=_tag_scores,
    text=_tag_text,
    decisions=_tag_decisions,
    for_t5=False,
)
_SPAN = Head(
    encoder=EncoderPart(
        network=classifier.SPAN,
        feed=SpanFeed,
        objective=SpanAnswers,
        n_outputs=lambda _: 2,
    ),
    score=_span_scores,
    text=_span_text,
    decisions=_span_decisions,
)
_EMBEDDING = Head(
    encoder=EncoderPart(
        network=classifier.EMBEDDING,
        feed=EmbeddingFeed,
        objective=Embedding,
        n_outputs=lambda _: 0,
    ),
    score=_embedding_scores,
    text=_embedding_text,
    # All ranks may be 1, and that is no failure.
    decisions=_cosines,
    for_t5=False,
)
_TEXT = Head(encoder=None, score=_text_scores, text=_plain_text)

HEADS = {
    **dict.fromkeys(("classification", "regression", "choice", "answers", "entities"), _SEQUENCE),
    "tags": _TAGS,
    "span": _SPAN,
    "embeddings": _EMBEDDING,
    "text": _TEXT,
}
"""Kind of a task → its head."""

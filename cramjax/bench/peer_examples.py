"""Examples for transformers' `Trainer`, and its class of BERT, for each kind of task.

The examples come out of our own feed, so that both sides read the same tokens, windows and answers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from cramjax.bench import finetuning_peer
from cramjax.finetuning.feed import Arrays, PackedFeed
from cramjax.glue import inputs
from cramjax.glue.tasks import Row, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of task that is measured.

    Attributes:
        peer: the class of `transformers`.
        texts: (task, row) → the texts that the tokenizer is trained on.
        targets: batch of one example → what that class learns from it, by its own names.
    """

    peer: str
    texts: Callable[[Task, Row], list[str]]
    targets: Callable[[Arrays], dict[str, Any]]


def examples(kind: Kind, feed: PackedFeed) -> Iterator[dict[str, Any]]:
    """Yields the training examples of `feed` in order, as plain lists and numbers.

    Each has input_ids, token_type_ids, and what `kind.targets` says.
    """
    for number in range(feed.n_train):
        plan = feed.plan([number])
        batch = feed.arrays(plan, plan.need, 1)
        is_token = batch["segments"] > 0
        example = {
            "input_ids": batch["tokens"][is_token].tolist(),
            "token_type_ids": batch["types"][is_token].tolist(),
        }
        yield example | kind.targets(batch)


def _texts_of_samples(task: Task, row: Row) -> list[str]:
    pairs = itertools.chain(*(sample.pairs for sample in inputs.samples(task, row)))
    return [text for text in itertools.chain(*pairs) if text is not None]


def _words(task: Task, row: Row) -> list[str]:
    del task
    return [" ".join(row["words"])]


def _question_and_context(task: Task, row: Row) -> list[str]:
    del task
    return [row["question"], row["context"]]


def _class(batch: Arrays) -> dict[str, Any]:
    return {"labels": int(batch["labels"][0])}


def _tags(batch: Arrays) -> dict[str, Any]:
    labels = batch["labels"][batch["segments"] > 0].tolist()
    return {"labels": [finetuning_peer.NO_TAG if tag < 0 else tag for tag in labels]}


def _span(batch: Arrays) -> dict[str, Any]:
    start, end = int(batch["starts"][0]), int(batch["ends"][0])
    if not batch["weights"][0]:
        start = end = finetuning_peer.NOWHERE
    return {"start_positions": start, "end_positions": end}


KINDS = {
    "classification": Kind(
        peer="BertForSequenceClassification", texts=_texts_of_samples, targets=_class
    ),
    "tags": Kind(peer="BertForTokenClassification", texts=_words, targets=_tags),
    "span": Kind(peer="BertForQuestionAnswering", texts=_question_and_context, targets=_span),
}
"""Kind of a task → what the peer learns it from."""

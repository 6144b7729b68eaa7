"""What a model reads of a row, and what its answer means: pairs of texts for an encoder, text to text for a T5.

The text-to-text form is T5's (arXiv 1910.10683, section 2.4 and appendix D): the task's name, its fields by name, label words; a text
that is none of them is no answer. Words of WiC and WSC that a question is about are marked in the text for both kinds of model, as
appendix D does.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from cramjax.glue.tasks import Row, Task

_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
_PLACEHOLDER = "@placeholder"
_MARK, _OTHER_MARK = "*", "#"
# A referent is the same with or without these (arXiv 1910.10683, section 2.4: WSC).
_DETERMINERS = frozenset("a an the this that these those his her its their our my your".split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """What an encoder's head scores at once: one pair of texts, or one for each choice; `label` is None where it is not known."""

    pairs: tuple[tuple[str, str | None], ...]
    label: int | float | None


def samples(task: Task, row: Row) -> list[Sample]:
    """A row as an encoder sees it: one sample, for ReCoRD one an entity."""
    label = row.get("label")
    if task.kind == "entities":
        passage = _passage(row)
        return [
            Sample(
                pairs=((passage, row["query"].replace(_PLACEHOLDER, entity)),),
                label=None if label is None else int(entity in label),
            )
            for entity in row["entities"]
        ]
    return [Sample(pairs=_pairs(task, row), label=label)]


def _pairs(task: Task, row: Row) -> tuple[tuple[str, str | None], ...]:
    if task.kind == "choice":
        premise = f"{row['premise']} {_COPA_QUESTIONS[row['question']]}"
        return (premise, row["choice1"]), (premise, row["choice2"])
    if task.kind == "answers":
        return ((row["paragraph"], f"{row['question']} {row['answer']}"),)
    if task.name == "wic":
        return (
            tuple(
                _mark_characters(row[f"sentence{n}"], row[f"start{n}"], row[f"end{n}"])
                for n in (1, 2)
            ),
        )
    if task.name == "wsc":
        return ((_mark_words(row, {"span1": _MARK, "span2": _OTHER_MARK}), None),)
    first, *second = (row[field] for field in task.fields)
    return ((first, second[0] if second else None),)


def decide(task: Task, row: Row, scores: np.ndarray) -> Any:
    """The prediction of an encoder for `row` from float [samples, outputs]: a class, a score, a choice or an entity."""
    if task.kind == "entities":
        return (
            row["entities"][int(np.argmax(scores[:, 1] - scores[:, 0]))] if row["entities"] else ""
        )
    if task.kind == "regression":
        return float(scores[0, 0])
    return int(np.argmax(scores[0, : len(task.labels)]))


def source_text(task: Task, row: Row) -> str:
    """What a T5 reads."""
    if task.name == "wsc":
        return f"wsc: {_mark_words(row, {'span2': _MARK}, space='')}"
    if task.kind == "entities":
        return f"record query: {row['query']} entities: {', '.join(row['entities'])} passage: {_passage(row)}"
    fields = ("question", "answer", "paragraph") if task.kind == "answers" else sorted(task.fields)
    return " ".join([task.name, *(f"{field}: {row[field]}" for field in fields)])


def target_texts(task: Task, row: Row) -> list[str]:
    """What a T5 learns to answer to a labelled row; nothing where a row is not trained on, several where several are right."""
    if task.name == "wsc":
        return [row["span1_text"]] if row["label"] else []
    if task.kind == "entities":
        return list(row["label"])
    if task.kind == "regression":
        return [f"{round(row['label'] * 5) / 5:.1f}"]
    return [task.labels[row["label"]]]


def parse(task: Task, row: Row, text: str) -> Any:
    """The prediction that `text` is; None if it is none."""
    text = text.strip()
    if task.name == "wsc":
        words = _referent(text)
        candidate = _referent(row["span1_text"])
        return int(words <= candidate or candidate <= words) if words else None
    if task.kind == "entities":
        return text if text in row["entities"] else None
    if task.kind == "regression":
        return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
    return task.labels.index(text) if text in task.labels else None


def _referent(text: str) -> frozenset[str]:
    words = (word.strip('.,;:!?"') for word in text.lower().split())
    return frozenset(word for word in words if word and word not in _DETERMINERS)


def _passage(row: Row) -> str:
    """ReCoRD's passage without the marks of its bullet points."""
    text = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"])
    return text.replace("\n@highlight\n", ". ").replace("\n", " ")


def _mark_characters(text: str, start: int, end: int) -> str:
    return f"{text[:start]}{_MARK} {text[start:end]} {_MARK}{text[end:]}"


def _mark_words(row: Row, marks: dict[str, str], space: str = " ") -> str:
    """The text of a WSC row with marks around its spans, whose places count words."""
    words = row["text"].split()
    # The later span first: the place of the other one stays what it is.
    for span, mark in sorted(marks.items(), key=lambda item: -row[f"{item[0]}_index"]):
        start = row[f"{span}_index"]
        end = start + len(row[f"{span}_text"].split())
        words[start:end] = [f"{mark}{space}{' '.join(words[start:end])}{space}{mark}"]
    return " ".join(words)

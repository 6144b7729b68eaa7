"""Turns a row into a model's input, and a model's output into a prediction.

An encoder reads pairs of texts, a T5 text to text. The text-to-text form is T5's (arXiv 1910.10683,
section 2.4 and appendix D): the task's name, its fields by name, and words for labels; a text that
is not one of the words is no answer. In WiC and WSC the words that a question is about are marked
in the text for both kinds of model, as appendix D does.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from cramjax.glue.tasks import Row, Task

_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
_PLACEHOLDER = "@placeholder"
_MARK = "*"
_OTHER_MARK = "#"
# A referent is the same with or without these (arXiv 1910.10683, section 2.4: WSC).
_DETERMINERS = frozenset("a an the this that these those his her its their our my your".split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """An example for an encoder's head.

    Attributes:
        pairs: one pair of texts, or one for each choice; a second text of None means a single
            text.
        label: None if it is not known.
    """

    pairs: tuple[tuple[str, str | None], ...]
    label: int | float | None


def samples(task: Task, row: Row) -> list[Sample]:
    """Returns a row as an encoder sees it: one sample, or for ReCoRD one for each entity."""
    label = row.get("label")
    if task.kind != "entities":
        return [Sample(pairs=_pairs(task, row), label=label)]

    passage = _passage(row)
    entity_samples = []
    for entity in row["entities"]:
        query = row["query"].replace(_PLACEHOLDER, entity)
        is_right = None if label is None else int(entity in label)
        entity_samples.append(Sample(pairs=((passage, query),), label=is_right))
    return entity_samples


def _pairs(task: Task, row: Row) -> tuple[tuple[str, str | None], ...]:
    """Returns the texts of a row whose task is not ReCoRD."""
    if task.kind == "choice":
        premise = f"{row['premise']} {_COPA_QUESTIONS[row['question']]}"
        return (premise, row["choice1"]), (premise, row["choice2"])
    if task.kind == "answers":
        return ((row["paragraph"], f"{row['question']} {row['answer']}"),)
    if task.name == "wic":
        first = _mark_characters(row["sentence1"], row["start1"], row["end1"])
        second = _mark_characters(row["sentence2"], row["start2"], row["end2"])
        return ((first, second),)
    if task.name == "wsc":
        return ((_mark_words(row, {"span1": _MARK, "span2": _OTHER_MARK}), None),)

    texts = [row[field] for field in task.fields]
    return ((texts[0], texts[1] if len(texts) > 1 else None),)


def decide(task: Task, row: Row, scores: np.ndarray) -> Any:
    """Returns an encoder's prediction for `row`: a class, a score, a choice or an entity.

    Args:
        scores: float [samples of the row, outputs].
    """
    if task.kind == "entities":
        if not row["entities"]:
            return ""
        return row["entities"][int(np.argmax(scores[:, 1] - scores[:, 0]))]
    if task.labels is None:
        return float(scores[0, 0])
    return int(np.argmax(scores[0, : len(task.labels)]))


def source_text(task: Task, row: Row) -> str:
    """Returns the input of a T5."""
    if task.name == "wsc":
        return f"wsc: {_mark_words(row, {'span2': _MARK}, space='')}"
    if task.kind == "entities":
        entities = ", ".join(row["entities"])
        return f"record query: {row['query']} entities: {entities} passage: {_passage(row)}"

    if task.kind == "span":
        return f"question: {row['question']} context: {row['context']}"

    if task.kind == "answers":
        fields = ["question", "answer", "paragraph"]
    else:
        fields = sorted(task.fields)
    return " ".join([task.name, *(f"{field}: {row[field]}" for field in fields)])


def target_texts(task: Task, row: Row) -> list[str]:
    """Returns the answers that a T5 learns for a labelled row.

    The list is empty if the row is not trained on, and longer than one if several are right.
    """
    if task.name == "wsc":
        return [row["span1_text"]] if row["label"] else []
    if task.kind == "entities":
        return list(row["label"])
    if task.kind == "span":
        # No answer is an empty text.
        return [row["label"][0]["text"] if row["label"] else ""]
    if task.kind == "text":
        return [row["label"]]
    if task.labels is None:
        # Scores of STS-B in steps of 0.2.
        return [f"{round(row['label'] * 5) / 5:.1f}"]
    return [task.labels[row["label"]]]


def parse(task: Task, row: Row, text: str) -> Any:
    """Returns the prediction that a T5 gives by `text`, or None if it is no answer."""
    text = text.strip()
    if task.kind == "text":
        return text
    if task.kind == "span":
        # A T5 scores nothing.
        return {"text": text}
    if task.name == "wsc":
        words = _referent(text)
        candidate = _referent(row["span1_text"])
        return int(words <= candidate or candidate <= words) if words else None
    if task.kind == "entities":
        return text if text in row["entities"] else None
    if task.labels is None:
        return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
    return task.labels.index(text) if text in task.labels else None


def _referent(text: str) -> frozenset[str]:
    """Returns the words of a noun phrase without determiners and punctuation."""
    words = (word.strip('.,;:!?"') for word in text.lower().split())
    return frozenset(word for word in words if word and word not in _DETERMINERS)


def _passage(row: Row) -> str:
    """Returns ReCoRD's passage without the marks of its bullet points."""
    text = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"])
    return text.replace("\n@highlight\n", ". ").replace("\n", " ")


def _mark_characters(text: str, start: int, end: int) -> str:
    return f"{text[:start]}{_MARK} {text[start:end]} {_MARK}{text[end:]}"


def _mark_words(row: Row, marks: dict[str, str], space: str = " ") -> str:
    """Returns the text of a WSC row with marks around its spans, whose places count words."""
    words = row["text"].split()
    # The later span comes first, so that the place of the other one stays right.
    for span, mark in sorted(marks.items(), key=lambda item: -row[f"{item[0]}_index"]):
        start = row[f"{span}_index"]
        end = start + len(row[f"{span}_text"].split())
        marked = " ".join(words[start:end])
        words[start:end] = [f"{mark}{space}{marked}{space}{mark}"]
    return " ".join(words)

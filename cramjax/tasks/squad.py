"""Reads SQuAD's files: articles with paragraphs, questions and answers."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.glue.tasks import Row
from cramjax.tasks import tables

# Split → names of its file.
_FILES = {
    "squad": {"train": "train-v1.1.json", "validation": "dev-v1.1.json"},
    "squad2": {"train": "train-v2.0.json", "validation": "dev-v2.0.json"},
}


def file_of(name: str, folder: pathlib.Path, split: str) -> pathlib.Path:
    """Returns the file of a split as it is distributed, or the same compressed (.gz).

    Raises:
        UserError: if there is neither.
    """
    file = _FILES[name][split]
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    there = ", ".join(sorted(path.name for path in folder.iterdir()))
    raise UserError(f"{folder / file}: no such file (there: {there:.300}), nor {file}.gz")


def read(path: pathlib.Path, announce: Announce) -> list[Row]:
    """Returns a row for each question: "idx", "question", "context" and "label".

    The label is the list of answers, {"text", "start"}, empty where there is none. An answer that
    does not stand at its place in the context is moved to the nearest place where it does; one that
    stands nowhere has the start -1.

    Args:
        path: the file.
        announce: receives a line about answers that were moved or not found.

    Raises:
        UserError: for a file that is damaged or no SQuAD.
    """
    with tables.reading(path), tables.opened(path) as file:
        try:
            content = json.load(file)
        except (RecursionError, ValueError) as error:
            raise UserError(f"{path}: not JSON ({error}); copy it again") from error

    try:
        rows = list(_questions(content))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(
            f"{path}: is no file of SQuAD ({type(error).__name__}: {error}); it holds data, "
            "paragraphs, qas and answers"
        ) from error
    return placed(str(path), rows, announce)


def _questions(content: Any) -> Iterator[Row]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            context = _text(paragraph, "context")
            for qa in paragraph["qas"]:
                answers = [] if qa.get("is_impossible") else qa.get("answers", [])
                yield {
                    "idx": str(qa["id"]),
                    "question": _text(qa, "question"),
                    "context": context,
                    "label": [
                        {"text": _text(answer, "text"), "start": int(answer["answer_start"])}
                        for answer in answers
                    ],
                }


def _text(values: Any, key: str) -> str:
    if not isinstance(values[key], str):
        raise TypeError(f"{key}={values[key]!r:.80} is no text")
    return values[key]


def placed(where: str, rows: list[Row], announce: Announce) -> list[Row]:
    """Returns the rows with every answer at its place in the context, see `read`.

    An answer whose place is not known has the start -1, and gets the first place of its text.
    """
    n_moved = n_lost = 0
    for row in rows:
        for answer in row["label"]:
            start = _place(row["context"], answer["text"], answer["start"])
            n_moved += answer["start"] >= 0 and start not in (-1, answer["start"])
            n_lost += start < 0
            answer["start"] = start
    if n_moved:
        announce(f"{where}: {n_moved} answers moved to where they stand in the context")
    if n_lost:
        announce(
            f"{where}: {n_lost} answers are not in their context: they count in scores, and an "
            "encoder learns nothing from them"
        )
    return rows


def _place(context: str, text: str, start: int) -> int:
    """Returns the place of `text` in `context` that is nearest to `start`, or -1."""
    if start >= 0 and context[start : start + len(text)] == text:
        return start
    places = []
    found = context.find(text)
    while found >= 0:
        places.append(found)
        found = context.find(text, found + 1)
    return min(places, key=lambda place: abs(place - start), default=-1)

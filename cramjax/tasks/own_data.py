"""Reads the data that a task file names, and completes the task by what they hold."""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.glue.rows import TaskData
from cramjax.glue.tasks import Row, Task
from cramjax.tasks import answers, columns, squad, tables
from cramjax.tasks.own import OwnTask

_N_SHOWN = 8


def open_task(task: OwnTask, data_dir: str | None, announce: Announce) -> TaskData:
    """Read the files of a task, and say how many rows and labels there are.

    Args:
        task: as from `read`.
        data_dir: the folder of its files; None for that of the task file.
        announce: receives lines about the data.

    Raises:
        UserError: for a missing or damaged file, or a value that does not fit.
    """
    if data_dir == "tfds":
        raise UserError(f"--data_dir tfds: {task.path} names files; name their folder")
    folder = pathlib.Path(data_dir) if data_dir else pathlib.Path(task.path).parent
    splits = {}
    for split, file in task.files.items():
        splits[split] = _read(task, split, folder / file, announce)
        if not splits[split]:
            raise UserError(f"{folder / file}: has no rows")

    if task.kind == "classification":
        task = _classified(task, splits)
    if task.kind == "span":
        task = _answered(task, splits)
    for split, split_rows in splits.items():
        announce(f"{task.name}: {split} has {len(split_rows):,} rows{_balance(task, split_rows)}")
    return TaskData(task=task, splits=splits, differences=())


def _read(task: OwnTask, split: str, path: pathlib.Path, announce: Announce) -> list[Row]:
    if task.kind == "embeddings":
        return list(_compared(task, split, path))
    if task.kind == "tags":
        if tables.suffix_of(path) in columns.COLUMN_SUFFIXES:
            found = columns.read(path)
        else:
            found = columns.read(path, task.columns, (task.label,), task.names)
        return columns.as_iob2(path, found, announce)
    if task.kind == "span":
        if tables.suffix_of(path) == ".json":
            return squad.read(path, announce)
        return squad.placed(str(path), list(_spans(task, path)), announce)
    return list(_rows(task, path))


def _rows(task: OwnTask, path: pathlib.Path) -> Iterator[Row]:
    for number, (where, values) in enumerate(tables.rows(path)):
        row: Row = {"idx": number}
        for column in (*task.columns, task.label):
            if values.get(column) is None:
                raise _missing(task, where, column, values)
        row |= {column: str(values[column]) for column in task.columns}
        row["label"] = _label(task, values[task.label], f"{where}: {task.label}")
        yield row


def _label(task: OwnTask, value: Any, where: str) -> Any:
    if task.kind == "regression":
        return _number(value, where, "a regression")
    label = str(value)
    if task.names and label not in task.names:
        # Files of the Hub number the labels.
        by_number = {str(number): name for number, name in enumerate(task.names)}
        return by_number.get(label, label)
    return label


def _number(value: Any, where: str, what: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}={value!r:.80} is no number, which {what} needs")
    return score


def _compared(task: OwnTask, split: str, path: pathlib.Path) -> Iterator[Row]:
    """Yields pairs and triples of texts; those of evaluation have a label if the task has."""
    names = task.columns if split == "train" else task.pair
    label = task.label if split != "train" else ""
    for number, (where, values) in enumerate(tables.rows(path)):
        for column in (*names, label):
            if column and values.get(column) is None:
                raise _missing(task, where, column, values)
        row: Row = {"idx": number, "texts": tuple(str(values[column]) for column in names)}
        if label:
            row["label"] = _number(values[label], f"{where}: {label}", "a correlation")
        yield row


def _spans(task: OwnTask, path: pathlib.Path) -> Iterator[Row]:
    """Yields questions; an answer is a text, a list of texts, or the Hub's form of SQuAD."""
    question, context = task.columns
    for number, (where, values) in enumerate(tables.rows(path)):
        for column in (question, context, task.label):
            if column not in values:
                raise _missing(task, where, column, values)

        texts = values[task.label]
        starts: list[Any] = []
        if isinstance(texts, dict):
            starts = texts.get("answer_start", [])
            texts = texts.get("text", [])
        if not isinstance(texts, list):
            texts = [texts] if texts else []
        is_placed = isinstance(starts, list) and all(type(start) is int for start in starts)
        if not is_placed or len(starts) != len(texts):
            starts = [-1] * len(texts)
        yield {
            "idx": str(values.get("id", number)),
            "question": str(values[question]),
            "context": str(values[context]),
            "label": [
                {"text": str(text), "start": start}
                for text, start in zip(texts, starts, strict=True)
            ],
        }


def _missing(task: OwnTask, where: str, column: str, values: Mapping[str, Any]) -> UserError:
    """Returns the error for a row without a column."""
    found = ", ".join(map(str, values))
    return UserError(f"{where}: has no {column!r}, which {task.path} names (found: {found:.200})")


def _classified(task: OwnTask, splits: Mapping[str, list[Row]]) -> OwnTask:
    """Returns the task with the names of its labels, and makes numbers of those in the rows.

    Raises:
        UserError: for a label that the training set, or the list in the task file, does not have.
    """
    if task.names:
        known = task.names
    else:
        found = {row["label"] for row in splits["train"]}
        # Numbers in their order, names by the alphabet.
        is_numeric = all(re.fullmatch(r"-?\d{1,99}", label) for label in found)
        order: Callable[[str], Any] = int if is_numeric else str
        known = tuple(sorted(found, key=order))
    if len(known) < 2:
        raise UserError(
            f"{task.path}: {task.label} of {task.files['train']} has one label only "
            f"({', '.join(known)})"
        )
    numbers = {label: number for number, label in enumerate(known)}
    for split, split_rows in splits.items():
        for row in split_rows:
            if row["label"] not in numbers:
                raise UserError(
                    f"{task.path}: {task.label}={row['label']!r:.80} in row {row['idx'] + 1} of "
                    f"{task.files[split]} is none of the labels ({', '.join(known):.200})"
                )
            row["label"] = numbers[row["label"]]

    if "f1" in task.metrics and len(known) != 2:
        raise UserError(
            f"{task.path}: metric=f1 is for two labels, and there are {len(known)}; take macro_f1"
        )
    return dataclasses.replace(task, labels=known)


def _answered(task: OwnTask, splits: Mapping[str, list[Row]]) -> OwnTask:
    """Returns the task with the metrics that its questions need.

    Where a question has no answer, one that is given to it is wrong, as in SQuAD 2.0.

    Raises:
        UserError: for a metric of such questions if there are none.
    """
    evaluated = [row for split, rows in splits.items() if split != "train" for row in rows]
    known = answers.METRICS_V1
    if not all(row["label"] for row in evaluated):
        known = answers.METRICS_V2
    for metric in task.chosen:
        if metric not in known:
            raise UserError(
                f"{task.path}: metric={metric}: is for questions without an answer, and validation "
                f"has none; take one of {', '.join(known)}"
            )
    headline = (task.chosen or known)[:1]
    metrics = tuple(dict.fromkeys((*task.chosen, *known)))
    return dataclasses.replace(task, metrics=metrics, headline=headline)


def _balance(task: Task, rows: Sequence[Row]) -> str:
    """Returns how often the labels occur, the commonest first."""
    if task.kind == "embeddings" and "label" not in rows[0]:
        n_answers = len({row["texts"][1] for row in rows})
        return f", {n_answers:,} different answers"
    if task.kind in ("regression", "embeddings"):
        scores = [row["label"] for row in rows]
        return f", scores from {min(scores):g} to {max(scores):g}"
    if task.kind == "span":
        n_without = sum(not row["label"] for row in rows)
        return f", {n_without:,} without an answer"
    if task.kind == "text":
        return ""

    counts: collections.Counter[Any] = collections.Counter()
    for row in rows:
        if task.kind == "tags":
            counts.update(row["label"])
        elif task.labels:
            counts[task.labels[row["label"]]] += 1
    total = counts.total() or 1
    shown = [f"{name} {count / total:.0%}" for name, count in counts.most_common(_N_SHOWN)]
    if len(counts) > _N_SHOWN:
        shown.append(f"{len(counts) - _N_SHOWN} more")
    return f": {', '.join(shown)}"

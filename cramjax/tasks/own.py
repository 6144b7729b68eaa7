"""Reads a task file: a task of one's own, as files, columns and a kind of head, without code."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from cramjax.errors import UserError
from cramjax.glue.rows import TaskData
from cramjax.glue.tasks import OTHER, Row, Task
from cramjax.tasks import columns, squad, tables

Announce = Callable[[str], None]

# Head in a task file → (kind of task, number of text columns, metrics; the first one is reported).
_HEADS: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "classification": ("classification", (1, 2), ("accuracy", "macro_f1", "f1", "matthews")),
    "regression": ("regression", (1, 2), ("pearson", "spearman")),
    "tags": ("tags", (1,), ("f1", "precision", "recall", "accuracy")),
    "answers": ("span", (2,), ("f1", "exact_match")),
    "text": ("text", (1, 2), ("exact_match", "f1")),
}
_KEYS = ("name", "head", "train", "validation", "test", "text", "label", "labels", "metric")
_REQUIRED = ("head", "train", "validation", "text", "label")
_N_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTask(Task):
    """A task that a file describes.

    Attributes:
        path: of the task file, for messages.
        files: split → its file, as the task file names it.
        columns: of the texts.
        label: column of the label.
        names: the labels by number if the file lists them; None where the data say.
    """

    path: str
    files: Mapping[str, str] = dataclasses.field(hash=False)
    columns: tuple[str, ...]
    label: str
    names: tuple[str, ...] | None


def is_task_file(name: str) -> bool:
    """Returns whether a name on the command line is that of a task file."""
    return name.lower().endswith((".yaml", ".yml"))


def read(path: str) -> OwnTask:
    """Returns the task that a file describes; its labels come with the data.

    Raises:
        UserError: for a missing or damaged file, an unknown key, or a value that does not fit.
    """
    values = _values(path)
    head = _text(path, values, "head")
    if head not in _HEADS:
        raise UserError(f"{path}: head={head!r:.80} is none of {', '.join(_HEADS)}")
    kind, n_texts, known = _HEADS[head]
    texts = _texts(path, values, "text")
    if len(texts) not in n_texts:
        wanted = " or ".join(map(str, n_texts))
        raise UserError(f"{path}: text names {len(texts)} columns where {head} takes {wanted}")

    metrics = _texts(path, values, "metric") if "metric" in values else known[:1]
    for metric in metrics:
        if metric not in known:
            raise UserError(f"{path}: metric={metric!r:.80}: {head} has {', '.join(known)}")
    name = _text(path, values, "name", pathlib.Path(path).stem)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"{path}: name={name!r:.80} must be of letters, digits, - and _")
    # Those of a classification depend on its labels.
    further = () if kind == "classification" else known
    # The names that a T5 reads and a finetuned model notes.
    fields = ("question", "context") if kind == "span" else texts
    names = _texts(path, values, "labels") if "labels" in values else None
    files = {
        split: _text(path, values, split)
        for split in ("train", "validation", "test")
        if split in values
    }
    return OwnTask(
        suite=OTHER,
        name=name,
        folder=name,
        tfds="",
        fields=fields,
        labels=None,
        metrics=tuple(dict.fromkeys((*metrics, *further))),
        headline=metrics[:1],
        sizes={},
        kind=kind,
        path=path,
        files=files,
        columns=texts,
        label=_text(path, values, "label"),
        names=names,
    )


def _values(path: str) -> dict[str, Any]:
    """Returns the content of a task file, whose keys are known."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--task {path}: not readable ({reason})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split()):.200})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; it needs {', '.join(_REQUIRED)}")

    for key in values:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}"
            raise UserError(f"{path}: {key!s:.80}: no such key; {hint}")
    for key in _REQUIRED:
        if key not in values:
            raise UserError(f"{path}: has no {key}; it needs {', '.join(_REQUIRED)}")
    return values


def _text(path: str, values: Mapping[str, Any], key: str, default: str = "") -> str:
    value = values.get(key, default)
    # A column may be named by a number.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: {key}={value!r:.80} is no text; give a name")
    return value


def _texts(path: str, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Returns the texts of a key that holds one or a list."""
    value = values[key]
    items = value if isinstance(value, list) else [value]
    return tuple(_text(path, {key: item}, key) for item in items)


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
        splits[split] = _read(task, folder / file, announce)
        if not splits[split]:
            raise UserError(f"{folder / file}: has no rows")

    if task.kind == "classification":
        task = _classified(task, splits)
    for split, split_rows in splits.items():
        announce(f"{task.name}: {split} has {len(split_rows):,} rows{_balance(task, split_rows)}")
    return TaskData(task=task, splits=splits, differences=())


def _read(task: OwnTask, path: pathlib.Path, announce: Announce) -> list[Row]:
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
    if task.kind != "regression":
        label = str(value)
        # Files of the Hub number the labels.
        if task.names and label not in task.names and label.isdigit():
            if int(label) < len(task.names):
                return task.names[int(label)]
        return label
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}={value!r:.80} is no number, which a regression needs")
    return score


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
            starts = [0] * len(texts)
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
        is_numeric = all(re.fullmatch(r"-?\d+", label) for label in found)
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


def _balance(task: Task, rows: Sequence[Row]) -> str:
    """Returns how often the labels occur, the commonest first."""
    if task.kind == "regression":
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

"""Rows of a task from the files as distributed: tab-separated for GLUE, JSON lines for SuperGLUE."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from cramjax.errors import UserError
from cramjax.glue.tasks import Row, Task

_FILES = {
    "glue": {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"},
    "superglue": {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"},
}
# QQP's own files hold a few lines that were cut in two; every reader of GLUE leaves them out.
_BROKEN_LINES_ALLOWED = {"qqp"}
_GLUE_COLUMNS = {
    "cola": {"sentence": "sentence", "label": "label"},
    "sst2": {"sentence": "sentence", "label": "label"},
    "mrpc": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    "stsb": {"sentence1": "sentence1", "sentence2": "sentence2", "label": "score"},
    "qqp": {"question1": "question1", "question2": "question2", "label": "is_duplicate"},
    "mnli": {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
    "qnli": {"question": "question", "sentence": "sentence", "label": "label"},
    "rte": {"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"},
    "wnli": {"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"},
}


def file_of(task: Task, data_dir: pathlib.Path, split: str) -> pathlib.Path:
    """Where the rows of `split` should lie; splits are those of `Task.sizes`."""
    if task.first is not None:
        return data_dir / task.folder / f"{task.folder}.jsonl"
    base, _, part = split.partition("_")
    path = data_dir / task.folder / _FILES[task.suite][base]
    return path.with_stem(f"{path.stem}_{part}") if part else path


def suite_of(folder: str, data_dir: pathlib.Path) -> str | None:
    """The suite whose files of `folder` lie in `data_dir`."""
    found = [
        suite for suite, files in _FILES.items() if (data_dir / folder / files["train"]).is_file()
    ]
    return found[0] if len(found) == 1 else None


def read(task: Task, data_dir: pathlib.Path, split: str, warn: Callable[[str], None]) -> list[Row]:
    """The rows of a split, in the file's order.

    Raises:
        UserError: for a missing file, wrong columns or keys, and labels the task does not have.
    """
    path = file_of(task, data_dir, split)
    if not path.is_file():
        lying = (
            sorted(other.name for other in path.parent.iterdir()) if path.parent.is_dir() else []
        )
        there = f" (there: {', '.join(lying)})" if lying else ""
        raise UserError(
            f"{path}: no such file{there}; --data_dir holds {task.folder}/{path.name} as it is distributed"
        )
    try:
        if task.suite == "glue":
            return _read_tsv(task, path, split, warn)
        return [
            row
            for number, line in _lines(path)
            for row in _superglue_rows(task, path, number, line)
        ]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _read_tsv(task: Task, path: pathlib.Path, split: str, warn: Callable[[str], None]) -> list[Row]:
    columns, labelled = _GLUE_COLUMNS[task.name], not split.startswith("test")
    # No quoting: quotation marks in these files are text.
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if task.name == "cola" and labelled:  # has no header
        header, first = ["source", "label", "star", "sentence"], 0
    else:
        header, first = lines[0] if lines else [], 1
    wanted = {field: name for field, name in columns.items() if field != "label" or labelled}
    missing = [name for name in wanted.values() if name not in header]
    if missing:
        raise UserError(
            f"{path}: has no column {missing[0]!r} (found: {', '.join(header)}); give the official file"
        )
    at = {field: header.index(name) for field, name in wanted.items()}
    index = header.index("index") if "index" in header else None
    rows, broken = [], 0
    for number, cells in enumerate(lines[first:], start=first + 1):
        if len(cells) <= max(at.values()) or (task.name == "cola" and len(cells) != len(header)):
            if task.name not in _BROKEN_LINES_ALLOWED:
                raise UserError(
                    f"{path}:{number}: {len(cells)} columns where the header has {len(header)}"
                )
            broken += 1
            continue
        row: Row = {field: cells[column] for field, column in at.items() if field != "label"}
        row["idx"] = (
            int(cells[index])
            if index is not None and cells[index].isdigit()
            else number - first - 1
        )
        if labelled:
            row["label"] = _label(task, cells[at["label"]], f"{path}:{number}")
        rows.append(row)
    if broken:
        warn(f"{path}: {broken} broken lines left out")
    return rows


def _label(task: Task, value: Any, where: str) -> int | float:
    """A label as a number: by its name, or by the number it has in the official files."""
    if task.labels is None:
        try:
            return float(value)
        except ValueError:
            raise UserError(f"{where}: the score {value!r} is no number") from None
    text = str(value)
    lowered = [name.lower() for name in task.labels]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    if text.isdigit() and int(text) < len(task.labels) == 2:
        return int(text)
    raise UserError(f"{where}: unknown label {text!r}; {task.folder} has {', '.join(task.labels)}")


def _lines(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not a line of JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: not a JSON object")
            yield number, row


def _superglue_rows(task: Task, path: pathlib.Path, number: int, raw: dict) -> Iterator[Row]:
    where = f"{path}:{number}"
    try:
        if task.kind == "answers":
            yield from _multirc(task, raw, where)
        elif task.kind == "entities":
            yield from _record(raw)
        else:
            yield _plain_row(task, raw, where)
    except (KeyError, TypeError) as error:
        key = error.args[0] if isinstance(error, KeyError) else "one of its keys"
        raise UserError(
            f"{where}: has no {key!r} (found: {', '.join(raw)}); give the official file"
        ) from error


def _plain_row(task: Task, raw: dict, where: str) -> Row:
    idx = raw["idx"]
    row: Row = {"idx": int(idx) if str(idx).isdigit() else idx}
    row |= {field: raw[field] for field in task.fields}
    if task.name == "wic":
        row |= {key: int(raw[key]) for key in ("start1", "end1", "start2", "end2")}
    if task.name == "wsc":
        target = raw["target"]
        row |= {
            key: target[key] for key in ("span1_text", "span1_index", "span2_text", "span2_index")
        }
    if task.name == "axg":
        # The two sentences of a pair differ in a pronoun and stand one after the other; `pair_id` is each one's own.
        row["group"] = row["idx"] // 2
    if "label" in raw:
        row["label"] = _label(task, raw["label"], where)
    return row


def _multirc(task: Task, raw: dict, where: str) -> Iterator[Row]:
    passage = raw["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            row = {
                "idx": (raw["idx"], question["idx"], answer["idx"]),
                "group": (raw["idx"], question["idx"]),
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
            }
            yield row | (
                {"label": _label(task, answer["label"], where)} if "label" in answer else {}
            )


def _record(raw: dict) -> Iterator[Row]:
    text = raw["passage"]["text"]
    entities = sorted(
        {text[found["start"] : found["end"] + 1] for found in raw["passage"]["entities"]}
    )
    for query in raw["qas"]:
        row = {
            "idx": (raw["idx"], query["idx"]) if isinstance(raw["idx"], int) else query["idx"],
            "passage": text,
            "query": query["query"],
            "entities": entities,
        }
        yield row | (
            {"label": sorted({a["text"] for a in query["answers"]})} if "answers" in query else {}
        )

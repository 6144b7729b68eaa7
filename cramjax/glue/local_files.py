"""Reads rows of a task from the files as distributed: TSV for GLUE, JSON lines for SuperGLUE."""

from __future__ import annotations

import csv
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from cramjax.errors import UserError
from cramjax.glue.tasks import Row, Task

_FILES = {
    "glue": {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"},
    "superglue": {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"},
}
# QQP's own files have a few lines that were cut in two. Every reader of GLUE leaves them out.
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
    """Returns the file with the rows of `split`; splits are those of `Task.sizes`."""
    if task.first is not None:
        return data_dir / task.folder / f"{task.folder}.jsonl"
    base, _, part = split.partition("_")
    path = data_dir / task.folder / _FILES[task.suite][base]
    return path.with_stem(f"{path.stem}_{part}") if part else path


def suite_of(folder: str, data_dir: pathlib.Path) -> str | None:
    """Returns the suite whose files of `folder` lie in `data_dir`, or None if that is unclear."""
    suites = []
    for suite, files in _FILES.items():
        if (data_dir / folder / files["train"]).is_file():
            suites.append(suite)
    return suites[0] if len(suites) == 1 else None


def read(task: Task, data_dir: pathlib.Path, split: str, warn: Callable[[str], None]) -> list[Row]:
    """Read the rows of a split, in the order of the file.

    Args:
        warn: receives a message about lines that are left out.

    Raises:
        UserError: for a missing file, wrong columns or keys, or labels the task does not have.
    """
    path = file_of(task, data_dir, split)
    # A wrong folder is the usual mistake, so the message lists what is there.
    if not path.is_file():
        raise _missing(task, path)
    try:
        if task.suite == "glue":
            return _read_tsv(task, path, split, warn)
        rows: list[Row] = []
        for number, line in _lines(path):
            rows.extend(_superglue_rows(task, path, number, line))
        return rows
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _missing(task: Task, path: pathlib.Path) -> UserError:
    """Returns the error for a missing file, with the files that are in its folder."""
    names: list[str] = []
    if path.parent.is_dir():
        names = sorted(other.name for other in path.parent.iterdir())
    present = f" (there: {', '.join(names)})" if names else ""
    return UserError(
        f"{path}: no such file{present}; --data_dir holds {task.folder}/{path.name} as it is "
        "distributed"
    )


def _read_tsv(task: Task, path: pathlib.Path, split: str, warn: Callable[[str], None]) -> list[Row]:
    is_labelled = not split.startswith("test")
    # No quoting: quotation marks in these files are text.
    # A cell may be a whole article: csv's limit of 131,072 characters is for the process.
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        except csv.Error as error:
            raise UserError(f"{path}: is no file of cells and tabs ({error})") from error
    while lines and not any(cell.strip() for cell in lines[-1]):
        lines.pop()

    if task.name == "cola" and is_labelled:
        # These files of CoLA have no header.
        header = ["source", "label", "star", "sentence"]
        n_header_lines = 0
    else:
        header = lines[0] if lines else []
        n_header_lines = 1
    columns = _column_numbers(task, path, header, is_labelled)
    index_column = header.index("index") if "index" in header else None

    rows: list[Row] = []
    n_broken = 0
    for number, cells in enumerate(lines[n_header_lines:]):
        line = n_header_lines + number + 1
        is_short = len(cells) <= max(columns.values())
        if is_short or (task.name == "cola" and len(cells) != len(header)):
            if task.name not in _BROKEN_LINES_ALLOWED:
                raise UserError(
                    f"{path}:{line}: {len(cells)} columns where the header has {len(header)}"
                )
            n_broken += 1
            continue

        row: Row = {field: cells[columns[field]] for field in columns if field != "label"}
        # Servers know a row by the file's own index; files without one count lines.
        row["idx"] = number
        if index_column is not None and cells[index_column].isdigit():
            row["idx"] = int(cells[index_column])
        if is_labelled:
            row["label"] = _label(task, cells[columns["label"]], f"{path}:{line}")
        rows.append(row)

    if n_broken:
        warn(f"{path}: {n_broken} broken lines left out")
    return rows


def _column_numbers(
    task: Task, path: pathlib.Path, header: list[str], is_labelled: bool
) -> dict[str, int]:
    """Returns field → number of its column, with "label" if the split has labels.

    Raises:
        UserError: if a column is missing.
    """
    columns = {}
    for field, name in _GLUE_COLUMNS[task.name].items():
        if field == "label" and not is_labelled:
            continue
        if name not in header:
            raise UserError(
                f"{path}: has no column {name!r} (found: {', '.join(header)}); give the official "
                "file"
            )
        columns[field] = header.index(name)
    return columns


def _label(task: Task, value: Any, where: str) -> int | float:
    """Returns a label as a number, from its name or from its number in the official files."""
    if task.labels is None:
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{where}: the score {value!r:.80} is no number")
        return score

    text = str(value)
    names = [name.lower() for name in task.labels]
    if text.lower() in names:
        return names.index(text.lower())
    # Files with two classes may have numbers for them.
    if text.isdigit() and int(text) < len(task.labels) == 2:
        return int(text)
    raise UserError(
        f"{where}: unknown label {text!r:.80}; {task.folder} has {', '.join(task.labels)}"
    )


def _lines(path: pathlib.Path) -> Iterator[tuple[int, dict]]:
    """Yields (number, object) of the lines of a JSON lines file that are not empty."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}:{number}: not a line of JSON ({error.msg})") from error
            # Nested thousands of times, or a number of thousands of digits.
            except (RecursionError, ValueError) as error:
                raise UserError(f"{path}:{number}: not a line of JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: not a JSON object")
            yield number, row


def _superglue_rows(task: Task, path: pathlib.Path, number: int, raw: dict) -> Iterator[Row]:
    """Yields the rows of one line: one, or for MultiRC and ReCoRD several."""
    where = f"{path}:{number}"
    try:
        if task.kind == "answers":
            rows = list(_multirc(task, raw, where))
        elif task.kind == "entities":
            rows = list(_record(raw))
        else:
            rows = [_plain_row(task, raw, where)]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        key = error.args[0] if isinstance(error, KeyError) else "one of its keys"
        raise UserError(
            f"{where}: has no {key!r} (found: {', '.join(raw):.200}); give the official file"
        ) from error
    for row in rows:
        _check_types(task, row, where)
    yield from rows


def _check_types(task: Task, row: Row, where: str) -> None:
    """Raises UserError for a value that is not of the type that its key has in every row."""
    for key, value in row.items():
        if key in ("idx", "group", "label"):
            parts = value if isinstance(value, tuple | list) else (value,)
            is_right = all(isinstance(part, int | float | str) for part in parts)
        elif key == "entities":
            is_right = all(isinstance(entity, str) for entity in value)
        elif key.endswith("_index") or key.removesuffix("1").removesuffix("2") in ("start", "end"):
            is_right = isinstance(value, int)
        else:
            is_right = isinstance(value, str)
        if not is_right:
            raise UserError(f"{where}: {key} is {value!r:.80}; give the official file")
    if task.kind == "choice" and row["question"] not in ("cause", "effect"):
        raise UserError(f"{where}: question is {row['question']!r:.80}; give the official file")


def _plain_row(task: Task, raw: dict, where: str) -> Row:
    idx = raw["idx"]
    # The index of AX-b is text.
    row: Row = {"idx": int(idx) if str(idx).isdigit() else idx}
    row |= {field: raw[field] for field in task.fields}
    if task.name == "wic":
        row |= {key: int(raw[key]) for key in ("start1", "end1", "start2", "end2")}
    if task.name == "wsc":
        for key in ("span1_text", "span1_index", "span2_text", "span2_index"):
            row[key] = raw["target"][key]
    if task.name == "axg":
        # The sentences of a pair differ in a pronoun and stand one after the other. `pair_id` does
        # not help: each sentence has its own.
        row["group"] = row["idx"] // 2
    if "label" in raw:
        row["label"] = _label(task, raw["label"], where)
    return row


def _multirc(task: Task, raw: dict, where: str) -> Iterator[Row]:
    """Yields a row for each answer of each question of a passage."""
    passage = raw["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            row: Row = {
                "idx": (raw["idx"], question["idx"], answer["idx"]),
                "group": (raw["idx"], question["idx"]),
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
            }
            if "label" in answer:
                row["label"] = _label(task, answer["label"], where)
            yield row


def _record(raw: dict) -> Iterator[Row]:
    """Yields a row for each query of a passage."""
    text = raw["passage"]["text"]
    # The end of an entity is its last character.
    spans = [(entity["start"], entity["end"] + 1) for entity in raw["passage"]["entities"]]
    entities = sorted({text[start:end] for start, end in spans})
    for query in raw["qas"]:
        row: Row = {
            "idx": query["idx"],
            "passage": text,
            "query": query["query"],
            "entities": entities,
        }
        if isinstance(raw["idx"], int):
            row["idx"] = (raw["idx"], query["idx"])
        if "answers" in query:
            row["label"] = sorted({answer["text"] for answer in query["answers"]})
        yield row

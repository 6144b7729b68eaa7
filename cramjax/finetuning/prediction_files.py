"""The files of a prediction: rows of any table or text, and a line for each prediction."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from cramjax.errors import UserError
from cramjax.finetuning.prediction import words_of
from cramjax.glue.tasks import Row, Task
from cramjax.tasks import tables


def rows(path: pathlib.Path, task: Task, columns: Sequence[str] | None) -> Iterator[Row]:
    """Yields the rows of a file as a task has them, one after the other.

    Args:
        path: a text a line (.txt), or a table (`tables.rows`).
        task: the task of the model.
        columns: of the texts; None for the names of the task's fields.

    Raises:
        UserError: for a missing or damaged file, or a missing column.
    """
    if tables.suffix_of(path) == ".txt":
        if columns:
            raise UserError(f"{path}: is a text a line and has no columns; leave --columns out")
        yield from _lines(path, task)
        return

    named = columns or task.fields
    for where, values in tables.rows(path):
        for column in named:
            if values.get(column) is None:
                found = ", ".join(map(str, values))
                raise UserError(
                    f"{where}: has no {column!r} (found: {found:.200}); name the columns of the "
                    "texts with --columns"
                )
        if task.kind == "tags":
            given = values[named[0]]
            words = [str(word) for word in given] if isinstance(given, list) else _words(given)
            yield {"words": words}
        else:
            texts = (str(values[column]) for column in named)
            yield dict(zip(task.fields, texts, strict=True))


def _lines(path: pathlib.Path, task: Task) -> Iterator[Row]:
    if len(task.fields) != 1:
        raise UserError(
            f"{path}: has one text a line, and {task.name} reads {' and '.join(task.fields)}; give "
            f"{', '.join(tables.SUFFIXES)} with these columns"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with tables.reading(path), tables.opened(path) as file:
        for line in file:
            text = line.rstrip("\r\n")
            if task.kind == "tags":
                yield {"words": _words(text)}
            else:
                yield {task.fields[0]: text}


def _words(text: Any) -> list[str]:
    return [word for word, _ in words_of(str(text))]


def header(prediction: Mapping[str, Any], suffix: str) -> str:
    """Returns the first line of a file of predictions; "" for JSON lines."""
    return "\t".join(prediction) + "\n" if suffix == ".tsv" else ""


def line(prediction: Mapping[str, Any], suffix: str) -> str:
    """Returns the line of a prediction; in TSV a list or an embedding is joined by spaces."""
    if suffix == ".jsonl":
        values = {key: _plain(value) for key, value in prediction.items()}
        return json.dumps(values, ensure_ascii=False) + "\n"
    return "\t".join(map(_cell, prediction.values())) + "\n"


def _plain(value: Any) -> Any:
    """Returns an embedding as a list of numbers, with as many digits as a float32 has."""
    return [float(str(number)) for number in value] if isinstance(value, np.ndarray) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | np.ndarray):
        value = " ".join(map(str, value))
    return " ".join(str(value).split())


def write_vectors(file: BinaryIO, vectors: Iterable[np.ndarray], width: int) -> int:
    """Write embeddings as NumPy's .npy, one after the other, and return their number.

    Args:
        file: open for writing, and empty.
        vectors: float32 [width] each.
        width: of an embedding.
    """

    def write_head(n_rows: int) -> None:
        content = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, width)}
        np.lib.format.write_array_header_1_0(file, content)

    # The number of rows is known at the end. NumPy leaves room for any number in the head.
    write_head(0)
    n_rows = 0
    for vector in vectors:
        file.write(np.asarray(vector, "<f4").tobytes())
        n_rows += 1
    file.seek(0)
    write_head(n_rows)
    return n_rows

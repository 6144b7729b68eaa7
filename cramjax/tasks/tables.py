"""Reads rows of TSV, CSV, JSON lines and Parquet files, one after the other."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import IO, Any

from cramjax.errors import UserError

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")

Numbered = tuple[str, dict[str, Any]]
"""Where a row stands, for messages, and its values by column."""


def suffix_of(path: pathlib.Path) -> str:
    """Returns the last ending of a name, without regard to .gz."""
    name = path.name.lower().removesuffix(".gz")
    return pathlib.PurePath(name).suffix


def rows(path: pathlib.Path) -> Iterator[Numbered]:
    """Yields the rows of a file. Memory does not grow with the file.

    TSV has no quotes, CSV has; both name their columns in the first line. An empty line is an empty
    text if there is one column, and left out otherwise. Files but Parquet may be compressed (.gz).

    Raises:
        UserError: for a missing file, another ending, or a damaged row.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: the ending is none of {', '.join(SUFFIXES)}; rename the file")
    with reading(path):
        if suffix == ".parquet":
            yield from _parquet(path)
        elif suffix == ".jsonl":
            yield from _json_lines(path)
        else:
            yield from _cells(path, suffix)


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what a damaged file raises while it is read into a UserError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: not readable ({error}); copy it again") from error


def opened(path: pathlib.Path) -> IO[str]:
    """Returns the text of a file, which may be compressed (.gz)."""
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _cells(path: pathlib.Path, suffix: str) -> Iterator[Numbered]:
    # A cell may be a whole article: csv's limit of 131,072 characters is for the process.
    csv.field_size_limit(sys.maxsize)
    options: dict[str, Any] = {"delimiter": ","}
    if suffix == ".tsv":
        options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with opened(path) as file:
        reader = csv.reader(file, **options)
        try:
            header = next(reader, [])
            for cells in reader:
                # An empty line is a row if there is one column, and none otherwise.
                if not cells and len(header) == 1:
                    cells = [""]
                if not cells:
                    continue
                where = f"{path}:{reader.line_num}"
                if len(cells) != len(header):
                    raise UserError(
                        f"{where}: {len(cells)} columns where the first line has {len(header)}"
                    )
                yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{path}: is no file of cells ({error})") from error


def _json_lines(path: pathlib.Path) -> Iterator[Numbered]:
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            # Nested thousands of times, or a number of thousands of digits.
            except (RecursionError, ValueError) as error:
                raise UserError(f"{where}: not a line of JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{where}: not a JSON object")
            yield where, row


def _parquet(path: pathlib.Path) -> Iterator[Numbered]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not readable as Parquet ({error}); copy it again") from error


def names_of(path: pathlib.Path, column: str) -> list[str] | None:
    """Returns the names of a Parquet column's whole numbers, as the Hub's datasets note them."""
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_schema(path).metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        while "names" not in feature:
            feature = feature.get("feature") or feature["sequence"]
        names = feature["names"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    return None

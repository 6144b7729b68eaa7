"""Reads pairs out of records: lines of JSON, lines of two columns, rows of parquet."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from cramjax.config.keep import Keep
from cramjax.data.first_bytes import file_format, look_at
from cramjax.data.json_text import LONG_RECORD_BYTES
from cramjax.data.pair_text import PairForm, has_field
from cramjax.data.parquet_batches import open_table, record_batches
from cramjax.data.plain_text import LineReader, decode
from cramjax.data.record import FieldCheck, check_columns, with_keep
from cramjax.data.source import Drop
from cramjax.errors import UserError

FORMATS = (".tsv", ".jsonl", ".json", ".parquet")
"""Formats of files that hold both sides."""


def read_pairs(
    path: str,
    form: PairForm,
    drop: Drop,
    start: int = 0,
    end: int | None = None,
    *,
    keep: Keep | None = None,
    name: str | None = None,
) -> Iterator[str]:
    """Yield the pairs of a file as documents.

    Args:
        path: The file, whose format is one of `FORMATS`.
        form: Its fields, and what comes before each source.
        drop: Called for each record that is left out or repaired.
        start: First byte of the range.
        end: End of the range (exclusive), or None for the end of the file.
        keep: Which records are kept, or None for all.
        name: The file's name for people, or None for its path.

    Raises:
        UserError: if the file is unreadable as a whole, or no record has the fields.
    """
    name = name or path
    cures = with_keep(form.cures, keep)
    if file_format(path) == ".parquet":
        records = _parquet_records(path, name, cures, drop)
    else:
        kind = look_at(path)
        lines = LineReader(path, kind, drop, start, end)
        if file_format(path) == ".tsv":
            yield from _columns(lines, form, drop)
            return
        if not kind.by_lines:
            raise UserError(f"{name}: its records go over lines; give a record a line (.jsonl)")
        records = _json_records(lines, drop)

    fields = FieldCheck(name, cures, has_field)
    for where, record in records:
        fields.see(record)
        if keep is not None and not keep.accepts(record):
            drop("keep", "")
            continue
        document = form.of_record(record, where, drop)
        if document is not None:
            yield document
    if start == 0:
        fields.refuse_missing(end)


def _json_records(lines: LineReader, drop: Drop) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and content of each line's record."""
    for offset, line in lines:
        if lines.end is not None and offset >= lines.end:
            return
        if not line or line.isspace():
            continue
        if len(line) > LONG_RECORD_BYTES:
            drop("line_too_long", lines.where())
            continue
        try:
            record = json.loads(decode(line, lines.where(), drop))
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield lines.where(), record
        else:
            drop("not_json", lines.where())


def _columns(lines: LineReader, form: PairForm, drop: Drop) -> Iterator[str]:
    """Yield the pair of each line of two columns.

    Raises:
        UserError: if no line has two.
    """
    has_pairs = False
    first = ""

    for offset, line in lines:
        if lines.end is not None and offset >= lines.end:
            break
        if not line or line.isspace():
            continue
        columns = decode(line, lines.where(), drop).split("\t")
        if len(columns) != 2:
            noun = "column" if len(columns) == 1 else "columns"
            first = first or f"{lines.where()}: has {len(columns)} {noun}"
            drop("not_two_columns", lines.where())
            continue
        has_pairs = True
        document = form.joined(columns[0], columns[1], lines.where(), drop)
        if document is not None:
            yield document
    if first and not has_pairs and lines.start == 0:
        raise UserError(f"{first}, and no line has a source, a tab and a target; give such lines")


def _parquet_records(
    path: str, name: str, cures: Mapping[str, str], drop: Drop
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and content of each row: the columns that hold the fields of `cures`.

    Raises:
        UserError: if the file is unreadable, or a column is missing or doubled.
    """
    with open_table(path, look_at(path).compression, name) as table:
        names = table.schema_arrow.names
        columns = {}
        for field, cure in cures.items():
            # A name with dots is one column, or a field of one.
            column = field if field in names else field.partition(".")[0]
            columns[column] = cure
        check_columns(name, names, columns)

        as_records = operator.methodcaller("to_pylist")
        batches = record_batches(table, name, list(columns), as_records, drop)
        for first_row, records in batches:
            for number, record in enumerate(records, start=first_row):
                yield f"{name}:{number}", record

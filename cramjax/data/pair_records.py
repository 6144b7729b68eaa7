"""Reads pairs out of records: lines of JSON, lines of two columns, rows of parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from cramjax.config.keep import Keep
from cramjax.data.first_bytes import file_format, look_at
from cramjax.data.json_text import LONG_RECORD_BYTES
from cramjax.data.pair_text import PairForm
from cramjax.data.plain_text import LineReader, decode
from cramjax.data.source import Drop
from cramjax.errors import UserError

FORMATS = (".tsv", ".jsonl", ".json", ".parquet")
"""Formats of files that hold both sides."""

_ROWS = 1024
_LISTED = 10


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
    if file_format(path) == ".parquet":
        records = _parquet_records(path, name)
    else:
        kind = look_at(path)
        lines = LineReader(path, kind, drop, start, end)
        if file_format(path) == ".tsv":
            yield from _columns(lines, form, drop)
            return
        if not kind.by_lines:
            raise UserError(f"{name}: its records go over lines; give a record a line (.jsonl)")
        records = _json_records(lines, drop)

    fields = _Fields(name, form)
    for where, record in records:
        fields.see(record)
        if keep is not None and not keep.accepts(record):
            drop("keep", "")
            continue
        document = form.of_record(record, where, drop)
        if document is not None:
            yield document
    if start == 0:
        fields.refuse_missing()


class _Fields:
    """Notices which fields the records of a file have."""

    def __init__(self, name: str, form: PairForm):
        self._name = name
        self._form = form
        self._missing: list[str] | None = None
        self._found: dict[str, None] = {}

    def see(self, record: dict[str, Any]) -> None:
        if self._missing == []:
            return
        self._missing = self._form.missing_in(record)
        self._found |= dict.fromkeys(list(record)[:_LISTED])

    def refuse_missing(self) -> None:
        """Raise a UserError if there were records, and none had both fields."""
        if self._missing:
            refuse_pair_fields(self._name, self._missing[0], self._found)


def refuse_pair_fields(where: str, name: str, found: Iterable[str]) -> NoReturn:
    """Raise the UserError of records none of which has the field `name`."""
    listed = ", ".join(sorted(map(str, found))[:_LISTED]) or "none"
    raise UserError(
        f"{where}: no record has a field {name!r} (found: {listed}); set "
        "--config.data.source_field and --config.data.target_field"
    )


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
            first = first or f"{lines.where()}: has {len(columns)} columns"
            drop("not_two_columns", lines.where())
            continue
        has_pairs = True
        document = form.joined(columns[0], columns[1], lines.where(), drop)
        if document is not None:
            yield document
    if first and not has_pairs and lines.start == 0:
        raise UserError(f"{first}, and no line has a source, a tab and a target; give such lines")


def _parquet_records(path: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and content of each row.

    Raises:
        UserError: if the file is unreadable.
    """
    import pyarrow
    import pyarrow.parquet

    if look_at(path).compression:
        raise UserError(f"{name}: a parquet file packs itself; unpack it once")
    try:
        table = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=_ROWS):
            for record in batch.to_pylist():
                yield f"{name}:{number}", record
                number += 1
    except (pyarrow.ArrowException, ValueError, EOFError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{name}: not a readable parquet file ({first_line})") from error

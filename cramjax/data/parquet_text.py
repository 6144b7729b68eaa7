"""Reads the text column of parquet files; a damaged row group is left out from there on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from cramjax.config.keep import Keep
from cramjax.data import plain_text
from cramjax.data.plain_text import cut_place, decode
from cramjax.data.record import check_columns
from cramjax.data.source import Drop
from cramjax.data.unpacking import read_blocks
from cramjax.errors import UserError

_ROWS = 256
# A batch is smaller where its rows are long.
_BATCH_BYTES = 64 << 20
# Bytes of a column that are read from the disk at a time.
_BUFFER_BYTES = 1 << 20


def parquet_texts(
    path: str, compression: str | None, field: str, keep: Keep | None, drop: Drop
) -> Iterator[str]:
    """Yield the text of each row: whole, or in pieces if it is long.

    Raises:
        UserError: if the file is unreadable, or a column is missing, doubled or holds no text.
    """
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        source: Any = path
        try:
            if compression:
                # Parquet is read from its end, which a compressed stream cannot seek to.
                unpacked.writelines(read_blocks(path, compression))
                source = unpacked
            table = pyarrow.parquet.ParquetFile(source, buffer_size=_BUFFER_BYTES)
        except (pyarrow.ArrowException, ValueError, EOFError, OSError) as error:
            first_line = str(error).partition("\n")[0]
            raise UserError(f"{path}: not a readable parquet file ({first_line})") from error

        with table:
            check_columns(path, table.schema_arrow.names, field, keep)
            _check_kind(path, table.schema_arrow, field)
            first_row = 0
            for group in range(table.num_row_groups):
                yield from _row_group_texts(table, group, first_row, path, field, keep, drop)
                first_row += table.metadata.row_group(group).num_rows


def _row_group_texts(
    table: Any, group: int, first_row: int, path: str, field: str, keep: Keep | None, drop: Drop
) -> Iterator[str]:
    """Yield the texts of one row group, whose first row has the number `first_row`."""
    import pyarrow

    row = first_row
    facts = table.metadata.row_group(group)
    n_rows = min(_ROWS, _BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size))
    columns = [field, *(keep.fields if keep else ())]
    try:
        for batch in table.iter_batches(
            batch_size=max(1, n_rows), row_groups=[group], columns=columns
        ):
            others = batch.select(keep.fields).to_pylist() if keep else None
            for number, text in enumerate(_views(_as_bytes(batch.column(field)))):
                where = f"{path}:{row}"
                row += 1
                if keep and others and not keep.accepts(others[number]):
                    drop("keep", "")
                elif text is None:
                    drop("text_not_a_string", where)
                else:
                    yield from _pieces(text, where, drop)
    except (pyarrow.ArrowException, ValueError, OSError):
        drop("damaged_row_group", f"{path}:{row}")


def _views(texts: Any) -> Iterator[memoryview | None]:
    """Yield each value of an array of large_binary without a copy; None for a null."""
    _, places, content = texts.buffers()
    if not len(texts):
        return
    ends = np.frombuffer(places, np.int64)[texts.offset :][: len(texts) + 1].tolist()
    view = memoryview(content or b"")
    for is_valid, start, end in zip(texts.is_valid().to_pylist(), ends[:-1], ends[1:], strict=True):
        yield view[start:end] if is_valid else None


def _pieces(text: memoryview, where: str, drop: Drop) -> Iterator[str]:
    """Yield a text: whole, or in pieces if it is long."""
    start = 0
    while len(text) - start > plain_text.MAX_DOCUMENT_BYTES:
        piece = bytes(text[start : start + plain_text.MAX_DOCUMENT_BYTES + 1])
        end = cut_place(piece)
        yield decode(piece[:end], where, drop)
        start += end
    yield decode(bytes(text[start:]), where, drop)


def _check_kind(path: str, schema: Any, field: str) -> None:
    """Check that the column `field` of a parquet file holds text."""
    import pyarrow

    kind = schema.field(field).type
    try:
        _as_bytes(pyarrow.array([], kind))
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: the field {field!r} holds {kind}, no text; set --config.data.text_field"
        ) from error


def _as_bytes(column: Any) -> Any:
    """Return a text column undecoded: invalid UTF-8 must not end the reading of the whole batch."""
    plain = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
    return plain.cast("large_binary")

"""Reads the text column of parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cramjax.config.keep import Keep
from cramjax.data import plain_text
from cramjax.data.parquet_batches import open_table, record_batches
from cramjax.data.plain_text import cut_place, decode
from cramjax.data.record import check_columns, text_cures
from cramjax.data.source import Drop
from cramjax.errors import UserError


def parquet_texts(
    path: str, compression: str | None, field: str, keep: Keep | None, drop: Drop
) -> Iterator[str]:
    """Yield the text of each row: whole, or in pieces if it is long.

    Raises:
        UserError: if the file is unreadable, or a column is missing, doubled or holds no text.
    """
    cures = text_cures(field, keep)
    with open_table(path, compression) as table:
        check_columns(path, table.schema_arrow.names, cures)
        _check_kind(path, table.schema_arrow, field)

        def taken(batch: Any) -> tuple[Any, list[dict[str, Any]]]:
            others = batch.select(keep.fields).to_pylist() if keep else []
            return _as_bytes(batch.column(field)), others

        for first_row, (texts, others) in record_batches(table, path, list(cures), taken, drop):
            for number, text in enumerate(_views(texts)):
                where = f"{path}:{first_row + number}"
                if keep and not keep.accepts(others[number]):
                    drop("keep", "")
                elif text is None:
                    drop("text_not_a_string", where)
                else:
                    yield from _pieces(text, where, drop)


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

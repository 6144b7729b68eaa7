"""Reads rows of token ids from a list column of a parquet file, exactly and in bounded memory."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import numpy as np

from cramjax.data.source import Drop
from cramjax.errors import UserError

# Rows decoded at a time: of 128 tokens they are 8 MB as int64.
_ROWS = 1 << 13


def is_list_of_ids(path: str, field: str) -> bool:
    """Return True if the column `field` of a parquet file holds lists of whole numbers.

    A file that cannot be read, or lacks the column, holds none: whoever reads its text says so.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, ValueError, OSError):
        return False
    return schema.names.count(field) == 1 and _is_list_of_integers(schema.field(field).type)


def _is_list_of_integers(kind: Any) -> bool:
    from pyarrow import types

    tests = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    return any(test(kind) for test in tests) and types.is_integer(kind.value_type)


def count(path: str) -> int:
    """Return the number of rows of a parquet file, by its footer.

    Raises:
        UserError: if the file cannot be read.
    """
    with _open(path) as table:
        return table.metadata.num_rows


def usual_length(path: str, field: str) -> int:
    """Return the number of ids that most rows at the beginning of a file have.

    Raises:
        UserError: if the file cannot be read, or has no rows.
    """
    for lengths, _ in _batches(path, field, lambda *_: None):
        present = lengths[lengths > 0]
        if len(present):
            return int(np.bincount(present).argmax())
    raise UserError(f"{path}: has no row of ids in its field {field!r}")


def read_rows(
    path: str, field: str, row_tokens: int, n_rows: int | None, drop: Drop
) -> Iterator[np.ndarray]:
    """Yield the rows of a file in order, int64 [n, row_tokens] at a time.

    Args:
        path: The file.
        field: Its column of lists of whole numbers.
        row_tokens: Ids of a row; others are left out.
        n_rows: Rows to read at most; None for all.
        drop: Called for each row that is left out: it is null, holds a null, or has another length.
            Of a damaged row group the rest is left out.

    Raises:
        UserError: if the file cannot be read, or the column is of another type.
    """
    first_row = n_read = 0
    for lengths, values in _batches(path, field, drop):
        is_whole = lengths == row_tokens
        if n_rows is not None:
            # What comes after the last row is not read, so it is not left out either.
            n_before = n_read + np.cumsum(is_whole) - is_whole
            lengths, is_whole = lengths[n_before < n_rows], is_whole[n_before < n_rows]
            values = values[: np.maximum(lengths, 0).sum()]

        for row in np.flatnonzero(~is_whole):
            reason = "row_is_null" if lengths[row] < 0 else "row_of_another_length"
            drop(reason, f"{path}:{first_row + row}")
        # Values of rows that are left out lie between the others.
        counts = np.maximum(lengths, 0)
        yield values[np.repeat(is_whole, counts)].reshape(-1, row_tokens)
        first_row += len(lengths)
        n_read += int(is_whole.sum())
        if n_rows is not None and n_read >= n_rows:
            return


def _batches(path: str, field: str, drop: Drop) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the lengths of rows, int64 [n] (-1: null), and their ids one after the other, int64."""
    import pyarrow

    with _open(path) as table:
        schema = table.schema_arrow
        if schema.names.count(field) != 1 or not _is_list_of_integers(schema.field(field).type):
            raise UserError(
                f"{path}: has no field {field!r} with lists of token ids, as the files before it"
            )

        for group in range(table.num_row_groups):
            try:
                for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[field]):
                    yield _lengths_and_values(batch.column(0))
            except (pyarrow.ArrowException, OSError):
                drop("damaged_row_group", f"{path}: row group {group}")


def _open(path: str) -> Any:
    """Return the `ParquetFile` of a path, a context that closes it."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable parquet file ({first_line})") from error


def _lengths_and_values(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Take a list column apart; a row that holds a null counts as null."""
    import pyarrow
    import pyarrow.compute

    counted = pyarrow.compute.call_function("list_value_length", [column])
    lengths = np.asarray(counted.fill_null(-1)).astype(np.int64)
    values = column.flatten()
    if values.null_count:
        is_null = np.asarray(values.is_null())
        owner = np.repeat(np.arange(len(lengths)), np.maximum(lengths, 0))
        kept = ~np.isin(owner, owner[is_null])
        lengths[np.unique(owner[is_null])] = -1
        values = values.filter(pyarrow.array(kept))
    # An unsigned id over 2**63 becomes negative, which is as foreign to every vocabulary.
    return lengths, np.asarray(values).astype(np.int64)


def blocks(rows: Iterator[np.ndarray], n_rows: int) -> Iterator[np.ndarray]:
    """Yield the same rows, `n_rows` at a time; the last block may have fewer."""
    waiting: collections.deque[np.ndarray] = collections.deque()
    n_waiting = 0
    for batch in rows:
        waiting.append(batch)
        n_waiting += len(batch)
        if n_waiting >= n_rows:
            together = np.concatenate(waiting)
            n_whole = n_waiting // n_rows * n_rows
            yield from together[:n_whole].reshape(-1, n_rows, together.shape[1])
            waiting = collections.deque([together[n_whole:]])
            n_waiting -= n_whole
    if n_waiting:
        yield np.concatenate(waiting)

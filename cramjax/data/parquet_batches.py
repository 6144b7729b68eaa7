"""Reads rows of parquet files in bounded memory; a damaged row group is left out from there on."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from cramjax.data.source import Drop
from cramjax.data.unpacking import read_blocks
from cramjax.errors import UserError

_ROWS = 256
# A batch is smaller where its rows are long.
_BATCH_BYTES = 64 << 20
# Bytes of a column that are read from the disk at a time.
_BUFFER_BYTES = 1 << 20

_Rows = TypeVar("_Rows")


@contextlib.contextmanager
def open_table(path: str, compression: str | None, name: str | None = None) -> Iterator[Any]:
    """Open a parquet file as pyarrow's `ParquetFile`.

    Args:
        path: The file.
        compression: What the whole file is packed with, or None.
        name: The file's name for people, or None for its path.

    Raises:
        UserError: if the file is unreadable.
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
            raise UserError(
                f"{name or path}: not a readable parquet file ({first_line})"
            ) from error
        with table:
            yield table


def record_batches(
    table: Any, name: str, columns: Sequence[str], taken: Callable[[Any], _Rows], drop: Drop
) -> Iterator[tuple[int, _Rows]]:
    """Yield the rows of a table in order: the number of the first row of a batch, and its rows.

    Args:
        table: As `open_table` gives it.
        name: The file's name for people.
        columns: What is read.
        taken: Takes the rows out of a `RecordBatch`. Where that fails, the row group is damaged.
        drop: Called for each row group that is damaged.
    """
    first_row = 0
    for group in range(table.num_row_groups):
        yield from _of_group(table, group, first_row, name, list(columns), taken, drop)
        first_row += table.metadata.row_group(group).num_rows


def _of_group(
    table: Any,
    group: int,
    row: int,
    name: str,
    columns: list[str],
    taken: Callable[[Any], _Rows],
    drop: Drop,
) -> Iterator[tuple[int, _Rows]]:
    """Yield the batches of one row group, whose first row has the number `row`."""
    import pyarrow

    facts = table.metadata.row_group(group)
    n_rows = max(1, min(_ROWS, _BATCH_BYTES * facts.num_rows // max(1, facts.total_byte_size)))
    try:
        for batch in table.iter_batches(batch_size=n_rows, row_groups=[group], columns=columns):
            yield row, taken(batch)
            row += batch.num_rows
    except (pyarrow.ArrowException, ValueError, OSError):
        drop("damaged_row_group", f"{name}:{row}")

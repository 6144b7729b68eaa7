"""Reads the documents of one file: .txt, .jsonl (.json) or .parquet, each plain or packed.

Files are streamed in bounded memory. Bad input never stops a preparation: records are repaired if
they can be and left out if not, and both are counted with file and position.
"""

from __future__ import annotations

from collections.abc import Iterator

from cramjax.config.keep import Keep
from cramjax.data.first_bytes import look_at
from cramjax.data.json_text import line_texts, value_texts
from cramjax.data.parquet_text import parquet_texts
from cramjax.data.plain_text import LineReader, documents_between_blank_lines, documents_of
from cramjax.data.source import Drop


def read_file(
    path: str,
    field: str,
    drop: Drop,
    start: int = 0,
    end: int | None = None,
    *,
    keep: Keep | None = None,
) -> Iterator[str]:
    """Read the documents of one file of a known format.

    Args:
        path: The file.
        field: Field of a record that holds its text.
        drop: Called for each record that is left out or repaired; with "keep" and no position for
            one that the filter leaves out.
        start: First byte of the range; only files whose `FileKind.has_ranges` have ranges.
        end: End of the range (exclusive), or None for the end of the file.
        keep: Which records are kept, or None for all.

    Raises:
        UserError: if the file is unreadable as a whole, or no record has the field.
    """
    kind = look_at(path)
    if kind.suffix == ".parquet":
        return parquet_texts(path, kind.compression, field, keep, drop)
    if kind.suffix == ".txt":
        lines = LineReader(path, kind, drop, start, end, in_pieces=True)
        documents = documents_of if kind.by_lines else documents_between_blank_lines
        return documents(lines, drop)

    if kind.by_lines:
        return line_texts(LineReader(path, kind, drop, start, end), field, keep, drop)
    return value_texts(path, kind, field, keep, drop)

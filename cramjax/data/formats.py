"""Reads the documents of one file: .txt, .jsonl (.json) or .parquet, each plain, .gz or .zst.

Files are streamed in bounded memory. Bad input never stops a preparation: records are repaired if
they can be and left out if not, and both are counted with file and position.
"""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NoReturn

import zstandard

from cramjax.data.source import Drop
from cramjax.errors import UserError

FORMATS = (".txt", ".jsonl", ".json", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

MAX_LINE_BYTES = 256 << 20
"""Longer lines are no text that anybody wrote; they are skipped without being held in memory."""

MAX_DOCUMENT_BYTES = 8 << 20
"""A text file without blank lines is cut after this, at the end of a line, to bound memory."""

BLOCK_BYTES = 1 << 20
"""Bytes read at a time from plain files and gzip archives."""

# Compressed bytes given to zstd at a time: what a bomb makes of them still fits in memory.
_ZSTD_BYTES = 4096
_PARQUET_ROWS = 256
# A batch of a parquet file is smaller where its rows are long.
_PARQUET_BYTES = 64 << 20
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
# Records and fields that are looked at to say which fields there are.
_LISTED = 10


def file_format(path: str | os.PathLike) -> tuple[str, str | None]:
    """Return the suffix of the format (".jsonl"), and the name of the compression or None."""
    plain = pathlib.Path(path)
    compression = COMPRESSIONS.get(plain.suffix.lower())
    if compression:
        plain = plain.with_suffix("")
    return plain.suffix.lower(), compression


def real_compression(path: str | os.PathLike) -> str | None:
    """Return the name of a file's compression by its first bytes or else by its name, or None.

    A download may be packed under a plain name.

    Raises:
        UserError: if the file only points to one that Git LFS has not fetched.
    """
    with open(path, "rb") as file:
        beginning = file.read(len(_LFS_POINTER))
    if beginning == _LFS_POINTER:
        raise UserError(
            f"{path}: only a pointer of Git LFS, not the text; run git lfs pull in its repository"
        )
    found = [name for magic, name in _MAGIC.items() if beginning.startswith(magic)]
    return found[0] if found else file_format(path)[1]


def read_file(
    path: str, field: str, drop: Drop, start: int = 0, end: int | None = None
) -> Iterator[str]:
    """Read the documents of one file of a known format.

    Args:
        path: The file.
        field: Field of a record that holds its text.
        drop: Called for each record that is left out or repaired.
        start: First byte of the range; only plain .txt and .jsonl files have ranges.
        end: End of the range (exclusive), or None for the end of the file.

    Raises:
        UserError: if the file is unreadable as a whole, or no record has the field.
    """
    suffix, _ = file_format(path)
    compression = real_compression(path)
    if suffix == ".parquet":
        return _parquet_texts(path, compression, field, drop)
    if suffix == ".json" and _is_json_list(path, compression):
        return _json_list_texts(path, compression, field, drop)

    lines = LineReader(path, compression, drop, start, end)
    if suffix == ".txt":
        return _blank_line_documents(lines, drop)
    return _json_texts(lines, field, drop)


class LineReader:
    """Yields the lines of a file as (offset, bytes without the line end).

    The first line is the first one that begins at `start` or later. The lines go on after `end`:
    each format decides where a range stops. `end` only stops the search for a first line.

    Attributes:
        path: The file.
        start: First byte of the range.
        end: End of the range (exclusive), or None for the end of the file.
        number: Number of the latest line, counted from 1 at `start`.
    """

    def __init__(self, path: str, compression: str | None, drop: Drop, start: int, end: int | None):
        self.path = path
        self.start = start
        self.end = end
        self.number = 0
        self._compression = compression
        self._drop = drop

    def where(self) -> str:
        """Return "file:line" of the latest line; in a range, "file@start:line"."""
        range_start = f"@{self.start}" if self.start else ""
        return f"{self.path}{range_start}:{self.number}"

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        # One byte earlier: a range that starts right behind a line end has no partial line to
        # skip.
        offset = max(0, self.start - 1)
        # The line that is not ended yet begins at `offset`, as far as it is held.
        rest = bytearray()
        is_foreign = self.start > 0  # it began before the range
        is_too_long = False  # its beginning was thrown away

        for block in self._blocks(offset):
            if offset + len(rest) == 0 and block.startswith(_UTF16_BOMS):
                self._drop("utf16_file", self.where())
                return

            first, *others = block.split(b"\n")
            rest += first
            if others:
                for line in (bytes(rest), *others[:-1]):
                    if not is_foreign:
                        self.number += 1
                        if is_too_long:
                            self._drop("line_too_long", self.where())
                        else:
                            yield offset, _without_marks(line, offset)
                    offset += len(line) + 1
                    is_foreign = False
                    is_too_long = False
                rest = bytearray(others[-1])

            if is_foreign and self.end is not None and offset + len(rest) >= self.end:
                return
            if is_foreign or len(rest) > MAX_LINE_BYTES:
                offset += len(rest)
                rest = bytearray()
                is_too_long = True

        # The last line, without a line end.
        self.number += 1
        if not is_foreign:
            if is_too_long:
                self._drop("line_too_long", self.where())
            elif rest:
                yield offset, _without_marks(bytes(rest), offset)

    def _blocks(self, offset: int) -> Iterator[bytes]:
        try:
            yield from read_blocks(self.path, self._compression, offset)
        except EOFError:
            self._drop("truncated_archive", self.where())


def _without_marks(line: bytes, offset: int) -> bytes:
    """Remove a file's byte order mark and the rest of a Windows line end."""
    if offset == 0:
        line = line.removeprefix(_BOM)
    return line.removesuffix(b"\r")


def _blank_line_documents(lines: LineReader, drop: Drop) -> Iterator[str]:
    """Yield the runs of lines between blank ones.

    A document belongs to the range that holds the blank line before it, or the file's start.
    """
    document: list[bytes] = []
    n_bytes = 0
    is_owned = lines.start == 0
    for offset, line in lines:
        is_blank = not line or line.isspace()
        if is_owned and not is_blank:
            document.append(line)
            n_bytes += len(line) + 1

        if n_bytes and (is_blank or n_bytes >= MAX_DOCUMENT_BYTES):
            yield _decode(b"\n".join(document), lines.where(), drop)
            document = []
            n_bytes = 0

        # Not within a document of this range: that one is read to its end.
        is_between = is_blank or not is_owned
        if is_between and lines.end is not None and offset >= lines.end:
            return
        is_owned = is_owned or is_blank

    if document:
        yield _decode(b"\n".join(document), lines.where(), drop)


def _json_texts(lines: LineReader, field: str, drop: Drop) -> Iterator[str]:
    """Yield the text of each line's record."""
    has_field = False
    other_fields: set[str] = set()
    for offset, line in lines:
        if lines.end is not None and offset >= lines.end:
            break
        if not line or line.isspace():
            continue

        try:
            record = json.loads(_decode(line, lines.where(), drop))
        except (ValueError, RecursionError):
            drop("not_json", lines.where())
            continue

        if isinstance(record, dict):
            if field in record:
                has_field = True
            elif len(other_fields) < _LISTED:
                other_fields.update(list(record)[:_LISTED])
        text = _text_of(record, field, lines.where(), drop)
        if text is not None:
            yield text

    # Only the first range of a large file refuses: another may happen to hold other records.
    if other_fields and not has_field and lines.start == 0:
        _refuse_field(lines.path, field, other_fields, lines.end)


def _is_json_list(path: str, compression: str | None) -> bool:
    """Return True if a .json file holds one list; other ones hold a record per line."""
    try:
        beginning = next(read_blocks(path, compression), b"")
    except EOFError:
        return False
    return beginning.removeprefix(_BOM).lstrip()[:1] == b"["


def _json_list_texts(path: str, compression: str | None, field: str, drop: Drop) -> Iterator[str]:
    """Yield the text of each record of one JSON list, which is read whole."""
    content = bytearray()
    try:
        for block in read_blocks(path, compression):
            content += block
            if len(content) > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}: one JSON list of over 256 MB; convert it to .jsonl, a record a line"
                )
        records = json.loads(content.removeprefix(_BOM))
    except (EOFError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    del content

    dicts = [record for record in records if isinstance(record, dict)]
    if records and not any(field in record for record in dicts):
        other_fields: set[str] = set()
        for record in dicts[:_LISTED]:
            other_fields.update(record)
        _refuse_field(path, field, other_fields)

    for number, record in enumerate(records):
        text = _text_of(record, field, f"{path}:{number}", drop)
        if text is not None:
            yield text


def _text_of(record: Any, field: str, where: str, drop: Drop) -> str | None:
    """Return the text of a record; None, after a call of `drop`, if it has none."""
    if not isinstance(record, dict) or field not in record:
        drop("no_text_field", where)
        return None
    if not isinstance(record[field], str):
        drop("text_not_a_string", where)
        return None
    return record[field]


def _parquet_texts(path: str, compression: str | None, field: str, drop: Drop) -> Iterator[str]:
    """Yield the text column of a parquet file; a damaged row group is left out from there on."""
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        try:
            if compression:
                # Parquet is read from its end, which a compressed stream cannot seek to.
                unpacked.writelines(read_blocks(path, compression))
                table = pyarrow.parquet.ParquetFile(unpacked)
            else:
                table = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, ValueError, EOFError, OSError) as error:
            first_line = str(error).partition("\n")[0]
            raise UserError(f"{path}: not a readable parquet file ({first_line})") from error

        with table:
            _check_column(path, table.schema_arrow, field)
            first_row = 0
            for group in range(table.num_row_groups):
                yield from _row_group_texts(table, group, first_row, path, field, drop)
                first_row += table.metadata.row_group(group).num_rows


def _row_group_texts(
    table: Any, group: int, first_row: int, path: str, field: str, drop: Drop
) -> Iterator[str]:
    """Yield the texts of one row group, whose first row has the number `first_row`."""
    import pyarrow

    row = first_row
    facts = table.metadata.row_group(group)
    n_rows = min(_PARQUET_ROWS, _PARQUET_BYTES * facts.num_rows // max(1, facts.total_byte_size))
    try:
        for batch in table.iter_batches(
            batch_size=max(1, n_rows), row_groups=[group], columns=[field]
        ):
            for value in _as_bytes(batch.column(0)):
                where = f"{path}:{row}"
                row += 1
                if value is None:
                    drop("text_not_a_string", where)
                else:
                    yield _decode(value, where, drop)
    except (pyarrow.ArrowException, ValueError, OSError):
        drop("damaged_row_group", f"{path}:{row}")


def _check_column(path: str, schema: Any, field: str) -> None:
    """Check that a parquet file has a column `field` of text."""
    import pyarrow

    if field not in schema.names:
        _refuse_field(path, field, schema.names)
    if schema.names.count(field) > 1:
        raise UserError(
            f"{path}: has {schema.names.count(field)} columns called {field!r}; rename one, or set "
            "--config.data.text_field"
        )
    kind = schema.field(field).type
    try:
        _as_bytes(pyarrow.array([], kind))
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: the field {field!r} holds {kind}, no text; set --config.data.text_field"
        ) from error


def _as_bytes(column: Any) -> list[bytes | None]:
    """Return a text column undecoded: invalid UTF-8 must not end the reading of the whole batch."""
    plain = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
    return plain.cast("large_binary").to_pylist()


def _refuse_field(
    path: str, field: str, other_fields: Iterable[str], end: int | None = None
) -> NoReturn:
    """Raise the UserError of a file in which no record has the field."""
    listed = ", ".join(sorted(map(str, other_fields))[:_LISTED]) or "none"
    where = path if end is None else f"{path}, the first {end >> 20} MiB"
    raise UserError(
        f"{where}: no record has a field {field!r} (found: {listed}); set --config.data.text_field"
    )


def _decode(text: bytes, where: str, drop: Drop) -> str:
    """Decode UTF-8; invalid bytes are replaced, and `drop` is called."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        drop("invalid_utf8_repaired", where)
        return text.decode("utf-8", errors="replace")


def read_blocks(path: str, compression: str | None, start: int = 0) -> Iterator[bytes]:
    """Yield the unpacked content of a file in blocks.

    Args:
        path: The file.
        compression: "gzip", "zstd" or None.
        start: First byte; only plain files start elsewhere than at 0.

    Raises:
        EOFError: after what could be read of a truncated or damaged archive.
    """
    with open(path, "rb") as file:
        if compression == "gzip":
            yield from _gzip_blocks(file)
        elif compression == "zstd":
            yield from _zstd_blocks(file)
        else:
            file.seek(start)
            while block := file.read(BLOCK_BYTES):
                yield block


def _gzip_blocks(file: BinaryIO) -> Iterator[bytes]:
    with gzip.open(file) as stream:
        try:
            # Not `read`, which loses what it had before an error.
            while block := stream.read1(BLOCK_BYTES):
                yield block
        except (OSError, zlib.error) as error:
            raise EOFError(str(error)) from error


def _zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Unpack frame by frame: the module's own reader stops silently at a truncated end."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as zstd --long=31
    frame = None
    while packed := file.read(_ZSTD_BYTES):
        while packed:
            frame = frame or decompressor.decompressobj()
            try:
                block = frame.decompress(packed)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            if block:
                yield block

            # The next frame begins in what this one left over.
            packed = b""
            if frame.eof:
                packed = frame.unused_data
                frame = None
    if frame is not None:
        raise EOFError("the last frame is cut short")

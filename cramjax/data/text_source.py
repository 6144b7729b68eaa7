"""Local text files: .txt, .jsonl (.json) and .parquet, each plain, .gz or .zst, streamed in bounded memory.

Hostile input is counted and skipped with file and position, or kept and counted where it can be repaired; it never stops a preparation.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import os
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn

import zstandard

from cramjax.data.source import Drop, Part
from cramjax.errors import UserError

FORMATS = (".txt", ".jsonl", ".json", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# Longer lines are no text anybody wrote; they are skipped without being held in memory.
MAX_LINE_BYTES = 256 << 20
# A text file without blank lines is cut here, at the end of a line, so that memory stays bounded.
MAX_DOCUMENT_BYTES = 8 << 20
# Plain files are read in ranges of this size, by as many processes as there are cores.
RANGE_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
# Compressed bytes given to zstd at a time: what a bomb makes of them still fits in memory.
_ZSTD_BYTES = 4096
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilePart(Part):
    """Bytes `start` to `end` (None: the end) of the file at `path`: the documents that start there."""

    path: str
    start: int = 0
    end: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles:
    """The files that `pattern` (a path, a folder or a glob) names; `field` holds the text of a record."""

    spec: str
    weight: float
    index: int
    pattern: str
    field: str
    revision: str | None = None

    def parts(self) -> list[FilePart]:
        """Files in the order of their names, large plain ones in ranges. Raises UserError where there is none."""
        return [part for path in find_files(self.pattern) for part in self._ranges(path)]

    def read(self, part: FilePart, drop: Drop) -> Iterator[str]:
        """See `TextSource.read`."""
        return read_file(part.path, self.field, drop, part.start, part.end)

    def _ranges(self, path: pathlib.Path) -> Iterator[FilePart]:
        facts = path.stat()
        key = f"{path.name}:{facts.st_size}:{facts.st_mtime_ns}"
        common = {"source": self.index, "path": str(path)}
        kind, compression = file_format(path)
        if compression or kind not in (".txt", ".jsonl") or facts.st_size <= RANGE_BYTES:
            yield FilePart(**common, name=str(path), key=key, n_bytes=facts.st_size)
            return
        for start in range(0, facts.st_size, RANGE_BYTES):
            end = min(start + RANGE_BYTES, facts.st_size)
            yield FilePart(
                **common,
                name=f"{path}@{start}",
                key=f"{key}:{start}",
                n_bytes=end - start,
                start=start,
                end=end,
            )


def find_files(pattern: str) -> list[pathlib.Path]:
    """The files behind a path, a folder or a glob, sorted. Raises UserError for none and for unknown formats."""
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        inside = sorted(path for path in pathlib.Path(expanded).rglob("*") if path.is_file())
        paths = [path for path in inside if file_format(path)[0] in FORMATS]
    else:
        # A name may itself hold brackets: what is there under the very name comes first.
        names = [expanded] if os.path.isfile(expanded) else glob.glob(expanded, recursive=True)
        paths = sorted(pathlib.Path(name) for name in names if os.path.isfile(name))
    if not paths:
        raise UserError(
            f"text:{pattern}: no such file; give a path, a folder or a glob of {', '.join(FORMATS)} files"
        )
    for path in paths:
        if file_format(path)[0] not in FORMATS:
            raise UserError(
                f"{path}: not a text format; {', '.join(FORMATS)} can be read, each also as .gz or .zst"
            )
        if not os.access(path, os.R_OK):
            raise UserError(f"{path}: cannot be read; check its permissions")
    return paths


def file_format(path: str | os.PathLike) -> tuple[str, str | None]:
    """The suffix that tells the format (".jsonl") and the name of the compression around it, if any."""
    plain = pathlib.Path(path)
    compression = COMPRESSIONS.get(plain.suffix.lower())
    return (plain.with_suffix("") if compression else plain).suffix.lower(), compression


def read_file(
    path: str, field: str, drop: Drop, start: int = 0, end: int | None = None
) -> Iterator[str]:
    """The documents of one file of a known format; `start` and `end` as in `FilePart`. Raises UserError for one it must refuse."""
    kind, compression = file_format(path)
    if kind == ".parquet":
        return _parquet_texts(path, compression, field, drop)
    if kind == ".json" and _is_json_list(path, compression):
        return _json_list_texts(path, compression, field, drop)
    lines = Lines(path, compression, drop, start, end)
    return _blank_line_documents(lines, drop) if kind == ".txt" else _json_texts(lines, field, drop)


class Lines:
    """The lines of a file as (offset, bytes without the line end), from the first that begins at `start` or after.

    They go on behind `end`: where a range stops is the format's to say. `end` only ends the search for a first line.
    """

    def __init__(self, path: str, compression: str | None, drop: Drop, start: int, end: int | None):
        self.path, self.start, self.end, self.number = path, start, end, 0
        self._compression, self._drop = compression, drop

    def where(self) -> str:
        """ "file:line" of the latest line; in a range, lines count from its start."""
        return f"{self.path}{f'@{self.start}' if self.start else ''}:{self.number}"

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        # One byte earlier: a range that starts right behind a line end has no partial line to skip.
        offset = max(0, self.start - 1)
        # `foreign`: the line began before the range. `too_long`: its beginning was thrown away.
        rest, foreign, too_long = bytearray(), self.start > 0, False
        for block in self._blocks(offset):
            if offset + len(rest) == 0 and block.startswith(_UTF16_BOMS):
                self._drop("utf16_file", self.where())
                return
            first, *others = block.split(b"\n")
            rest += first
            if others:
                for line in (bytes(rest), *others[:-1]):
                    if not foreign:
                        self.number += 1
                        if too_long:
                            self._drop("line_too_long", self.where())
                        else:
                            yield (
                                offset,
                                (line if offset else line.removeprefix(_BOM)).removesuffix(b"\r"),
                            )
                    offset += len(line) + 1
                    foreign = too_long = False
                rest = bytearray(others[-1])
            if foreign and self.end is not None and offset + len(rest) >= self.end:
                return
            if foreign or len(rest) > MAX_LINE_BYTES:
                offset, rest, too_long = offset + len(rest), bytearray(), True
        self.number += 1
        if too_long and not foreign:
            self._drop("line_too_long", self.where())
        elif rest and not foreign:
            yield offset, bytes(rest if offset else rest.removeprefix(_BOM)).removesuffix(b"\r")

    def _blocks(self, offset: int) -> Iterator[bytes]:
        try:
            yield from _blocks(self.path, self._compression, offset)
        except EOFError:
            self._drop("truncated_archive", self.where())


def _blank_line_documents(lines: Lines, drop: Drop) -> Iterator[str]:
    """Runs of lines between blank ones. The range that holds a document's leading blank line (or the file's start) owns it."""
    document, n_bytes, owned = [], 0, lines.start == 0
    for offset, line in lines:
        blank = not line or line.isspace()
        if owned and not blank:
            document.append(line)
            n_bytes += len(line) + 1
        if n_bytes and (blank or n_bytes >= MAX_DOCUMENT_BYTES):
            yield _decoded(b"\n".join(document), lines.where, drop)
            document, n_bytes = [], 0
        if (blank or not owned) and lines.end is not None and offset >= lines.end:
            return
        owned = owned or blank
    if document:
        yield _decoded(b"\n".join(document), lines.where, drop)


def _json_texts(lines: Lines, field: str, drop: Drop) -> Iterator[str]:
    found, other_fields = False, set()
    for offset, line in lines:
        if lines.end is not None and offset >= lines.end:
            break
        if not line or line.isspace():
            continue
        try:
            record = json.loads(_decoded(line, lines.where, drop))
        except (ValueError, RecursionError):
            drop("not_json", lines.where())
            continue
        if isinstance(record, dict) and field in record:
            found = True
        elif isinstance(record, dict) and len(other_fields) < 10:
            other_fields.update(list(record)[:10])
        text = _text_of(record, field, lines.where(), drop)
        if text is not None:
            yield text
    # Of a large file only the first range refuses: another may happen to hold other records.
    if other_fields and not found and lines.start == 0:
        _refuse_field(lines.path, field, other_fields, lines.end)


def _is_json_list(path: str, compression: str | None) -> bool:
    try:
        return next(_blocks(path, compression), b"").removeprefix(_BOM).lstrip()[:1] == b"["
    except EOFError:
        return False


def _json_list_texts(path: str, compression: str | None, field: str, drop: Drop) -> Iterator[str]:
    content = bytearray()
    try:
        for block in _blocks(path, compression):
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
        _refuse_field(path, field, {key for record in dicts[:10] for key in record})
    for number, record in enumerate(records):
        text = _text_of(record, field, f"{path}:{number}", drop)
        if text is not None:
            yield text


def _text_of(record: Any, field: str, where: str, drop: Drop) -> str | None:
    if not isinstance(record, dict) or field not in record:
        drop("no_text_field", where)
    elif not isinstance(record[field], str):
        drop("text_not_a_string", where)
    else:
        return record[field]
    return None


def _parquet_texts(path: str, compression: str | None, field: str, drop: Drop) -> Iterator[str]:
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        try:
            if (
                compression
            ):  # parquet is read from its end, which a compressed stream cannot seek to
                unpacked.writelines(_blocks(path, compression))
            table = pyarrow.parquet.ParquetFile(unpacked if compression else path)
        except (pyarrow.ArrowException, ValueError, EOFError, OSError) as error:
            raise UserError(
                f"{path}: not a readable parquet file ({str(error).partition(chr(10))[0]})"
            ) from error
        with table:
            _check_column(path, table.schema_arrow, field)
            first = 0
            for group in range(table.num_row_groups):
                row = first
                try:
                    for batch in table.iter_batches(
                        batch_size=256, row_groups=[group], columns=[field]
                    ):
                        for value in _as_bytes(batch.column(0)):
                            where = f"{path}:{row}"
                            row += 1
                            if value is None:
                                drop("text_not_a_string", where)
                            else:
                                yield _decoded(value, lambda where=where: where, drop)
                except (pyarrow.ArrowException, ValueError, OSError):
                    drop("damaged_row_group", f"{path}:{row}")
                first += table.metadata.row_group(group).num_rows


def _check_column(path: str, schema: Any, field: str) -> None:
    import pyarrow

    if field not in schema.names:
        _refuse_field(path, field, set(schema.names))
    kind = schema.field(field).type
    try:
        _as_bytes(pyarrow.array([], kind))
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path}: the field {field!r} holds {kind}, no text; set --config.data.text_field"
        ) from error


def _as_bytes(column: Any) -> list[bytes | None]:
    """A text column as it is stored: what is no UTF-8 shall not end the reading of the whole batch."""
    plain = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
    return plain.cast("large_binary").to_pylist()


def _refuse_field(path: str, field: str, found: set[str], end: int | None = None) -> NoReturn:
    listed = ", ".join(sorted(map(str, found))[:10]) or "none"
    where = path if end is None else f"{path}, the first {end >> 20} MiB"
    raise UserError(
        f"{where}: no record has a field {field!r} (found: {listed}); set --config.data.text_field"
    )


def _decoded(text: bytes, where: Callable[[], str], drop: Drop) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        drop("invalid_utf8_repaired", where())
        return text.decode("utf-8", errors="replace")


def _blocks(path: str, compression: str | None, start: int = 0) -> Iterator[bytes]:
    """The content of a file in blocks, from `start` if it is a plain one. EOFError ends a truncated or damaged archive."""
    with open(path, "rb") as file:
        if compression == "gzip":
            yield from _gzip_blocks(file)
        elif compression == "zstd":
            yield from _zstd_blocks(file)
        else:
            file.seek(start)
            while block := file.read(_BLOCK_BYTES):
                yield block


def _gzip_blocks(file: BinaryIO) -> Iterator[bytes]:
    with gzip.open(file) as stream:
        try:
            while block := stream.read1(
                _BLOCK_BYTES
            ):  # not `read`, which loses what it had before an error
                yield block
        except (OSError, zlib.error) as error:
            raise EOFError(str(error)) from error


def _zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Frame by frame: the module's own stream reader stops in silence at a truncated end."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # zstd --long=31
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
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("the last frame is cut short")

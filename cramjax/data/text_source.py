"""Local text files: .txt, .jsonl (.json) and .parquet, each plain, .gz or .zst, streamed in bounded memory.

Hostile input is counted and skipped with file and position, or kept and counted where it can be repaired; it never stops a preparation.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from cramjax.config.errors import UserError
from cramjax.data.sources import Drop, Part

FORMATS = (".txt", ".jsonl", ".json", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
# Longer lines are no text anybody wrote; they are skipped without being held in memory.
MAX_LINE_BYTES = 256 << 20
# A text file without blank lines is cut here, at the end of a line, so that memory stays bounded.
MAX_DOCUMENT_BYTES = 8 << 20
# Plain files are read in ranges of this size, by as many processes as there are cores.
RANGE_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


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
        """See `Source.read`."""
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
                **common, name=f"{path}@{start}", key=f"{key}:{start}", n_bytes=end - start, start=start, end=end
            )


def find_files(pattern: str) -> list[pathlib.Path]:
    """The files behind a path, a folder or a glob, sorted. Raises UserError for none and for unknown formats."""
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        inside = sorted(path for path in pathlib.Path(expanded).rglob("*") if path.is_file())
        paths = [path for path in inside if file_format(path)[0] in FORMATS]
    else:
        paths = sorted(pathlib.Path(name) for name in glob.glob(expanded, recursive=True) if os.path.isfile(name))
    if not paths:
        raise UserError(f"text:{pattern}: no such file; give a path, a folder or a glob of {', '.join(FORMATS)} files")
    for path in paths:
        if file_format(path)[0] not in FORMATS:
            raise UserError(f"{path}: not a text format; {', '.join(FORMATS)} can be read, each also as .gz or .zst")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path}: cannot be read; check its permissions")
    return paths


def file_format(path: str | os.PathLike) -> tuple[str, str | None]:
    """The suffix that tells the format (".jsonl") and the name of the compression around it, if any."""
    plain = pathlib.Path(path)
    compression = COMPRESSIONS.get(plain.suffix.lower())
    return (plain.with_suffix("") if compression else plain).suffix.lower(), compression


def read_file(path: str, field: str, drop: Drop, start: int = 0, end: int | None = None) -> Iterator[str]:
    """The documents of one file of a known format; `start` and `end` as in `FilePart`."""
    kind, compression = file_format(path)
    if kind == ".parquet":
        return _parquet_texts(path, compression, field, drop)
    lines = Lines(path, compression, drop, start)
    if kind == ".txt":
        return _blank_line_documents(lines, end, drop)
    if kind == ".json" and lines.starts_with_list():
        return _json_list_texts(path, compression, field, drop)
    return _json_texts(lines, end, field, drop)


class Lines:
    """The lines of a file as (offset, bytes without the line end), from the first that starts at `start` or after."""

    def __init__(self, path: str, compression: str | None, drop: Drop, start: int):
        self.path, self.number = path, 0
        self._compression, self._drop, self._start = compression, drop, start

    def where(self) -> str:
        """ "file:line" of the latest line; in a range, lines count from its start."""
        return f"{self.path}{f'@{self._start}' if self._start else ''}:{self.number}"

    def starts_with_list(self) -> bool:
        """Whether the file is one JSON list rather than a record a line."""
        with _open(self.path, self._compression) as file:
            try:
                return file.read(1024).removeprefix(_BOM).lstrip()[:1] == b"["
            except OSError:
                return False

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        with _open(self.path, self._compression) as file:
            # One byte earlier: a range that starts right behind a line end has no partial line to skip.
            offset = max(0, self._start - 1)
            file.seek(offset) if offset else None
            lines = self._split(file, offset)
            if self._start:
                next(lines, None)
                self.number = 0
            yield from lines

    def _split(self, file: Any, offset: int) -> Iterator[tuple[int, bytes]]:
        rest, skipping = bytearray(), False
        while True:
            try:
                block = file.read(_BLOCK_BYTES)
            except OSError:  # what pyarrow raises for a truncated or damaged archive
                self._drop("truncated_archive", self.where())
                block = b""
            if not block:
                break
            *whole, last = block.split(b"\n")
            for piece in whole:
                rest += piece
                self.number += 1
                if skipping:
                    self._drop("line_too_long", self.where())
                else:
                    yield offset, self._cleaned(bytes(rest), offset)
                offset += len(rest) + 1
                rest, skipping = bytearray(), False
            rest += last
            if len(rest) > MAX_LINE_BYTES:
                offset += len(rest)
                rest, skipping = bytearray(), True
        if rest and not skipping:
            self.number += 1
            yield offset, self._cleaned(bytes(rest), offset)
        elif skipping:
            self.number += 1
            self._drop("line_too_long", self.where())

    @staticmethod
    def _cleaned(line: bytes, offset: int) -> bytes:
        return (line.removeprefix(_BOM) if offset == 0 else line).removesuffix(b"\r")


def _blank_line_documents(lines: Lines, end: int | None, drop: Drop) -> Iterator[str]:
    """Runs of lines between blank ones. The range that holds a document's leading blank line (or the file's start) owns it."""
    document, n_bytes = [], 0
    owned = "@" not in lines.where().removeprefix(lines.path)
    for offset, line in lines:
        if line.strip():
            if owned:
                document.append(line)
                n_bytes += len(line) + 1
        if n_bytes and (not line.strip() or n_bytes >= MAX_DOCUMENT_BYTES):
            yield _decoded(b"\n".join(document), lines, drop)
            document, n_bytes = [], 0
        if not line.strip():
            if end is not None and offset >= end:
                return
            owned = True
    if document:
        yield _decoded(b"\n".join(document), lines, drop)


def _json_texts(lines: Lines, end: int | None, field: str, drop: Drop) -> Iterator[str]:
    found, other_fields = False, set()
    for offset, line in lines:
        if end is not None and offset >= end:
            break
        if not line.strip():
            continue
        try:
            record = json.loads(_decoded(line, lines, drop))
        except (ValueError, RecursionError):
            drop("not_json", lines.where())
            continue
        if isinstance(record, dict) and field in record:
            found = True
        elif isinstance(record, dict):
            other_fields |= set(list(record)[:10])
        text = _text_of(record, field, lines.where(), drop)
        if text is not None:
            yield text
    if other_fields and not found:
        _refuse_field(lines.path, field, other_fields)


def _json_list_texts(path: str, compression: str | None, field: str, drop: Drop) -> Iterator[str]:
    with _open(path, compression) as file:
        content = file.read(MAX_LINE_BYTES + 1)
    if len(content) > MAX_LINE_BYTES:
        raise UserError(f"{path}: one JSON list of over 256 MB; convert it to .jsonl, a record a line")
    try:
        records = json.loads(content.removeprefix(_BOM))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if records and not any(isinstance(record, dict) and field in record for record in records):
        _refuse_field(path, field, {key for record in records[:10] if isinstance(record, dict) for key in record})
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
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as folder:
        if compression:  # parquet is read from its end, which a compressed stream cannot seek to
            plain = os.path.join(folder, "plain.parquet")
            with _open(path, compression) as packed, open(plain, "wb") as file:
                shutil.copyfileobj(packed, file)
        try:
            table = pyarrow.parquet.ParquetFile(plain if compression else path)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from error
        with table:
            if field not in table.schema_arrow.names:
                _refuse_field(path, field, set(table.schema_arrow.names))
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for text in batch.column(0).to_pylist():
                    text = _text_of({field: text}, field, f"{path}:{row}", drop)
                    row += 1
                    if text is not None:
                        yield text


def _refuse_field(path: str, field: str, found: set[str]) -> None:
    listed = ", ".join(sorted(map(str, found))[:10]) or "none"
    raise UserError(f"{path}: no record has a field {field!r} (found: {listed}); set --config.data.text_field")


def _decoded(line: bytes, lines: Lines, drop: Drop) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        drop("invalid_utf8_repaired", lines.where())
        return line.decode("utf-8", errors="replace")


def _open(path: str, compression: str | None) -> Any:
    if compression is None:
        return open(path, "rb")
    import pyarrow

    # Raises OSError at a truncated end, where the zstandard module stops in silence.
    return pyarrow.input_stream(path, compression=compression)

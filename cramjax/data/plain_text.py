"""Reads lines of a file or of a range of it, and the documents of a .txt file."""

from __future__ import annotations

from collections.abc import Iterator

from cramjax.data.first_bytes import FileKind
from cramjax.data.source import Drop
from cramjax.data.unpacking import read_blocks

MAX_LINE_BYTES = 256 << 20
"""Longer lines of JSON are no text that anybody wrote; they are skipped without being held."""

MAX_DOCUMENT_BYTES = 8 << 20
"""A longer document of a .txt file is cut, and so is a longer text of a record: memory is bounded.

Each piece is a document of its own.
"""

_BOM = b"\xef\xbb\xbf"


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

    def __init__(
        self,
        path: str,
        kind: FileKind,
        drop: Drop,
        start: int = 0,
        end: int | None = None,
        *,
        in_pieces: bool = False,
    ):
        """Open nothing yet.

        Args:
            path: The file.
            kind: What it is.
            drop: Called for each line that is left out.
            start: See the attribute.
            end: See the attribute.
            in_pieces: Cut lines of over `MAX_DOCUMENT_BYTES` in pieces, which all have the line's
                offset. Else lines of over `MAX_LINE_BYTES` are left out.
        """
        self.path = path
        self.start = start
        self.end = end
        self.number = 0

        self._kind = kind
        self._drop = drop
        self._in_pieces = in_pieces
        self._max_bytes = MAX_DOCUMENT_BYTES if in_pieces else MAX_LINE_BYTES

    def where(self) -> str:
        """Return "file:line" of the latest line; in a range, "file@start:line"."""
        range_start = f"@{self.start}" if self.start else ""
        return f"{self.path}{range_start}:{self.number}"

    def __iter__(self) -> Iterator[tuple[int, bytes | bytearray]]:
        # One byte earlier: a range that starts right behind a line end has no partial line to
        # skip.
        offset = max(0, self.start - 1)
        # The line that is not ended yet begins at `offset`: what is held of it, and the number of
        # bytes before that are given away or thrown away.
        rest = bytearray()
        n_gone = 0
        is_foreign = self.start > 0  # it began before the range

        for block in self._blocks(offset):
            first, *others = block.split(b"\n")
            rest += first
            if others:
                for line in (rest, *others[:-1]):
                    n_bytes = len(line)
                    if not is_foreign:
                        self.number += 1
                        yield from self._ended(offset, line, n_gone)
                    offset += n_gone + n_bytes + 1
                    n_gone = 0
                    is_foreign = False
                rest = bytearray(others[-1])

            if is_foreign and self.end is not None and offset + n_gone + len(rest) >= self.end:
                return
            if is_foreign or (len(rest) > self._max_bytes and not self._in_pieces):
                n_gone += len(rest)
                rest = bytearray()
            elif len(rest) > self._max_bytes:
                n_gone += yield from self._cut_off(offset, rest)

        # The last line, without a line end.
        self.number += 1
        if not is_foreign and (rest or n_gone):
            yield from self._ended(offset, rest, n_gone)

    def _ended(
        self, offset: int, line: bytes | bytearray, n_gone: int
    ) -> Iterator[tuple[int, bytes | bytearray]]:
        """Yield the rest of a line that begins at `offset`, unless it is too long."""
        if not self._in_pieces and n_gone + len(line) > self._max_bytes:
            self._drop("line_too_long", self.where())
            return
        if len(line) > self._max_bytes:
            line = bytearray(line)
            n_gone += yield from self._cut_off(offset, line)
        # Slices would be copies, and a record may be large.
        if line.endswith(b"\r"):
            line = line[:-1]
        if offset == n_gone == 0 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        yield offset, line

    def _cut_off(self, offset: int, line: bytearray) -> Iterator[tuple[int, bytes | bytearray]]:
        """Yield the beginning of a long line in pieces; returns the bytes that `line` has lost."""
        n_bytes = len(line)
        mark = _BOM if offset == 0 else b""
        while len(line) > self._max_bytes:
            end = cut_place(line[: self._max_bytes + 1])
            yield offset, line[:end].removeprefix(mark)
            mark = b""
            del line[:end]
        return n_bytes - len(line)

    def _blocks(self, offset: int) -> Iterator[bytes]:
        try:
            yield from read_blocks(
                self.path, self._kind.compression, offset, encoding=self._kind.encoding
            )
        except EOFError:
            self._drop("truncated_archive", self.where())


def cut_place(text: bytes | bytearray) -> int:
    """Return the number of bytes of UTF-8, below all of them, after which to cut.

    That is before the last space of the second half, or else between two characters.
    """
    end = len(text) - 1
    space = max(text.rfind(b" ", end // 2, end), text.rfind(b"\n", end // 2, end))
    if space > 0:
        return space
    # Bytes that continue a character have the form 10xxxxxx; there are three at most.
    for place in range(end, max(0, end - 4), -1):
        if text[place] & 0xC0 != 0x80:
            return place
    return max(1, end)


def documents_of(lines: LineReader, drop: Drop) -> Iterator[str]:
    """Yield each line that is not blank, as a document.

    It belongs to the range in which it begins.
    """
    for offset, line in lines:
        if lines.end is not None and offset >= lines.end:
            return
        if line and not line.isspace():
            yield decode(line, lines.where(), drop)


def documents_between_blank_lines(lines: LineReader, drop: Drop) -> Iterator[str]:
    """Yield the runs of lines between blank ones.

    A document belongs to the range that holds the blank line before it, or the file's start.
    """
    document: list[bytes | bytearray] = []
    n_bytes = 0
    is_owned = lines.start == 0
    for offset, line in lines:
        is_blank = not line or line.isspace()
        if n_bytes and (is_blank or n_bytes + len(line) > MAX_DOCUMENT_BYTES):
            yield decode(b"\n".join(document), lines.where(), drop)
            document = []
            n_bytes = 0
        if is_owned and not is_blank:
            document.append(line)
            n_bytes += len(line) + 1

        # Not within a document of this range: that one is read to its end.
        is_between = is_blank or not is_owned
        if is_between and lines.end is not None and offset >= lines.end:
            return
        is_owned = is_owned or is_blank

    if document:
        yield decode(b"\n".join(document), lines.where(), drop)


def decode(text: bytes | bytearray, where: str, drop: Drop) -> str:
    """Decode UTF-8; invalid bytes are replaced, and `drop` is called."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        drop("invalid_utf8_repaired", where)
        return text.decode("utf-8", errors="replace")

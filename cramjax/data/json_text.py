"""Reads the texts of JSON records: a record a line, a list, or objects over many lines.

A text of a hundred megabytes is decoded in pieces. So a record takes little more memory than it has
bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from cramjax.config.keep import Keep
from cramjax.data import plain_text
from cramjax.data.first_bytes import FileKind
from cramjax.data.plain_text import LineReader, cut_place, decode
from cramjax.data.record import FieldCheck, text_cures, text_of
from cramjax.data.source import Drop
from cramjax.data.unpacking import read_blocks

LONG_RECORD_BYTES = 16 << 20
"""In a longer record, long texts are not decoded at once; without them it must be shorter."""

_LONG_TEXT_BYTES = 1 << 20
# Where a value of a list may begin: lists in lists are taken as one.
_VALUE = re.compile(rb"[^\s,\[\]\xef\xbb\xbf]")
_SCALAR_END = re.compile(rb'[\s,\[\]{"]')
_IN_OBJECT = re.compile(rb'["{}]')
_BACKSLASH, _BRACE, _QUOTE = b'\\{"'
# Whole characters of the inside of a JSON string.
_WHOLE = re.compile(rb"(?:[^\\]++|\\u[0-9a-fA-F]{4}|\\[^u])*+")
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_ESCAPE_BYTES = 6


def line_texts(lines: LineReader, field: str, keep: Keep | None, drop: Drop) -> Iterator[str]:
    """Yield the text of each line's record.

    Raises:
        UserError: if no record of a file, or of its first range, has a field.
    """
    records = _Records(lines.path, field, keep, drop)
    for offset, line in lines:
        if lines.end is not None and offset >= lines.end:
            break
        if line and not line.isspace():
            yield from records.texts(line, lines.where())

    # Only the first range of a large file refuses: another may happen to hold other records.
    if lines.start == 0:
        records.fields.refuse_missing(lines.end)


def value_texts(
    path: str, kind: FileKind, field: str, keep: Keep | None, drop: Drop
) -> Iterator[str]:
    """Yield the text of each record of a list, or of a sequence of values of any layout.

    Raises:
        UserError: if no record has a field.
    """
    records = _Records(path, field, keep, drop)
    splitter = _ValueSplitter()
    number = 0

    try:
        for block in read_blocks(path, kind.compression, encoding=kind.encoding):
            for value in splitter.feed(block):
                if value is None:
                    drop("line_too_long", f"{path}:{number}")
                else:
                    yield from records.texts(value, f"{path}:{number}")
                number += 1
    except EOFError:
        drop("truncated_archive", f"{path}:{number}")
    else:
        if splitter.is_open_list():
            drop("truncated_list", f"{path}:{number}")
        if (rest := splitter.rest()) is not None:
            yield from records.texts(rest, f"{path}:{number}")
    records.fields.refuse_missing()


class _Records:
    """Takes the texts out of the bytes of records."""

    def __init__(self, path: str, field: str, keep: Keep | None, drop: Drop):
        self.fields = FieldCheck(path, text_cures(field, keep))
        self._field = field
        self._keep = keep
        self._drop = drop

    def texts(self, content: bytes | bytearray, where: str) -> Iterator[str]:
        """Yield the text of a record: whole, or in pieces if it is long."""
        long_texts: dict[str, tuple[int, int]] = {}
        skeleton = content
        if len(content) > LONG_RECORD_BYTES:
            skeleton, long_texts = _without_long_texts(content)
            if len(skeleton) > LONG_RECORD_BYTES:
                self._drop("line_too_long", where)
                return
        try:
            record = json.loads(decode(skeleton, where, self._drop))
        except (ValueError, RecursionError):
            self._drop("not_json", where)
            return

        if isinstance(record, dict):
            self.fields.see(record)
            if self._keep is not None and not self._keep.accepts(record):
                self._drop("keep", "")
                return
        text = text_of(record, self._field, where, self._drop)
        if text in long_texts:
            yield from self._pieces(content, *long_texts[text], where)
        elif text is not None:
            yield text

    def _pieces(
        self, content: bytes | bytearray, start: int, end: int, where: str
    ) -> Iterator[str]:
        """Yield the text of the string within `start` and `end`, decoded in pieces."""
        while start < end:
            piece = bytes(content[start : min(end, start + plain_text.MAX_DOCUMENT_BYTES + 1)])
            if start + len(piece) < end:
                piece = piece[: _string_cut(piece)]
            start += len(piece)
            try:
                yield json.loads(f'"{decode(piece, where, self._drop)}"')
            except ValueError:
                self._drop("not_json", where)
                return


def _string_cut(piece: bytes) -> int:
    """Return after how many bytes of the inside of a JSON string to cut it."""
    end = cut_place(piece)
    if piece[end : end + 1] == b" ":
        return end
    # No space: the cut must not be within an escape, or between the two of a pair.
    whole = _WHOLE.match(piece, 0, end)
    end = whole.end() if whole else end
    if _HIGH_SURROGATE.fullmatch(piece, max(0, end - _ESCAPE_BYTES), end):
        end -= _ESCAPE_BYTES
    return max(1, end)


def _without_long_texts(
    content: bytes | bytearray,
) -> tuple[bytearray, dict[str, tuple[int, int]]]:
    """Replace the long strings of a record by names.

    Returns:
        The record, which is no further searched once it is too long all the same; and name →
        (start, end) of the string in `content`.
    """
    skeleton = bytearray()
    places = {}
    n_copied = 0

    place = content.find(b'"')
    while place >= 0 and place - n_copied + len(skeleton) <= LONG_RECORD_BYTES:
        end = _end_of_string(content, place + 1, 0)
        if end < 0:
            break
        if end - place > _LONG_TEXT_BYTES:
            name = f"the text at byte {place + 1} of a long record"
            places[name] = (place + 1, end)
            skeleton += content[n_copied : place + 1]
            skeleton += name.encode()
            n_copied = end
        place = content.find(b'"', end + 1)
    # One byte over the limit says as much as all of them.
    skeleton += content[n_copied : n_copied + LONG_RECORD_BYTES + 1]
    return skeleton, places


def _end_of_string(content: bytes | bytearray, start: int, n_backslashes: int) -> int:
    """Return the place of the quote that ends a JSON string, or -1.

    Args:
        content: Bytes.
        start: Place behind the quote that begins it.
        n_backslashes: Backslashes right before `start` that belong to the string.
    """
    place = content.find(b'"', start)
    while place >= 0:
        if _backslashes_before(content, start, place, n_backslashes) % 2 == 0:
            return place
        place = content.find(b'"', place + 1)
    return -1


def _backslashes_before(
    content: bytes | bytearray, start: int, place: int, n_backslashes: int
) -> int:
    """Count the backslashes that end at `place`; `n_backslashes` stand right before `start`."""
    first = place
    while first > start and content[first - 1] == _BACKSLASH:
        first -= 1
    return place - first + (n_backslashes if first == start else 0)


class _ValueSplitter:
    """Splits a stream of JSON in values; the items of lists are values."""

    def __init__(self):
        # The bytes of the value that is not ended yet, or None between values.
        self._value: bytearray | None = None
        self._is_too_long = False
        self._is_scalar = False
        self._n_braces = 0
        self._in_string = False
        self._n_backslashes = 0
        self._first = b""
        self._last = b""

    def is_open_list(self) -> bool:
        """Return True if what was fed began a list and did not end one."""
        return self._first == b"[" and self._last != b"]"

    def rest(self) -> bytearray | None:
        """Return the last value, which nothing has ended, or None."""
        return self._value

    def feed(self, block: bytes) -> Iterator[bytearray | None]:
        """Yield the values that end in the next block; None for one that is too long."""
        stripped = block.strip().removeprefix(b"\xef\xbb\xbf")
        if stripped:
            self._first = self._first or stripped[:1]
            self._last = stripped[-1:]

        place = 0
        while place < len(block):
            if self._value is None:
                found = _VALUE.search(block, place)
                if not found:
                    return
                place = found.start()
                self._value = bytearray()
                self._is_too_long = False
                self._is_scalar = block[place] not in (_BRACE, _QUOTE)

            end, is_ended = self._end(block, place)
            self._value += block[place:end]
            if len(self._value) > plain_text.MAX_LINE_BYTES:
                self._value = bytearray()
                self._is_too_long = True
            place = end
            if is_ended:
                yield None if self._is_too_long else self._value
                self._value = None

    def _end(self, block: bytes, place: int) -> tuple[int, bool]:
        """Return where in the block the value ends or the block does, and whether it does."""
        if self._is_scalar:
            found = _SCALAR_END.search(block, place)
            return (found.start(), True) if found else (len(block), False)

        while True:
            if self._in_string:
                quote = _end_of_string(block, place, self._n_backslashes)
                if quote < 0:
                    self._n_backslashes = _backslashes_before(
                        block, place, len(block), self._n_backslashes
                    )
                    return len(block), False
                self._in_string = False
                place = quote + 1
                if not self._n_braces:
                    return place, True

            found = _IN_OBJECT.search(block, place)
            if not found:
                return len(block), False
            place = found.end()
            sign = found.group()
            if sign == b'"':
                self._in_string = True
                self._n_backslashes = 0
                continue
            self._n_braces += 1 if sign == b"{" else -1
            if not self._n_braces:
                return place, True

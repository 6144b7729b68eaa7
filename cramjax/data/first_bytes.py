"""Says what a file of text is: by its first bytes, never by what its name claims of them.

Packing, encoding, and whether a line is a document are decided from the beginning alone, so every
range of a large file is read alike. What is no text is refused by name here, before hours of
reading.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import unicodedata
from typing import NoReturn

from cramjax.data.unpacking import compression_of, read_blocks
from cramjax.errors import UserError

FORMATS = (".txt", ".jsonl", ".json", ".parquet")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")

LOOK_BYTES = 1 << 20
"""Bytes of unpacked text that decide how a file is read."""

MANY_LINES = 1000
"""A whole file of fewer lines without a blank one is a document: an article has paragraphs."""

# More lines between two blank ones than a document of one sentence a line has.
_LONG_GROUP_LINES = 1000
# Lines that are shorter in the mean are words, verses or labels, and no documents.
_SENTENCE_BYTES = 20
# Wrapped text is not wider. Lines of one longer length are records, as reads of DNA.
_WIDEST_WRAP_BYTES = 120
_FIRST_WORD_BYTES = 20
_PROBED_LINES = 50
_PROBED_BYTES = 1 << 16
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_BOM = b"\xef\xbb\xbf"
# The longer ones first: UTF-32 begins like UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_AWAY = "move it out of the corpus"
_IMAGE = f"an image; {_AWAY}"
_PICKLE = f"a pickle; {_AWAY}, or export its text to .jsonl"
_BINARY = {
    b"PAR1": "a parquet file; name it .parquet",
    b"PK\x03\x04": "a zip archive (also .docx, .xlsx and .npz); unpack it, and give its text",
    b"%PDF-": "a PDF; take its text out of it, as with pdftotext",
    b"\x89PNG": _IMAGE, b"\xff\xd8\xff": _IMAGE, b"GIF8": _IMAGE,
    b"\x7fELF": f"a program; {_AWAY}",
    b"ARROW1": "an Arrow file; convert it to .parquet",
    b"SQLite format 3\0": "a SQLite database; export its text to .jsonl",
    b"\x89HDF\r\n": "an HDF5 file; export its text to .jsonl",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it, and give its text",
    b"Rar!\x1a\x07": "a rar archive; unpack it, and give its text",
    b"\x93NUMPY": f"a NumPy array; {_AWAY}",
    b"\x80\x02": _PICKLE, b"\x80\x03": _PICKLE,
    b"\x80\x04\x95": _PICKLE, b"\x80\x05\x95": _PICKLE,
}  # fmt: skip
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)?(<!doctype\s+html|<html[\s>])", re.IGNORECASE | re.DOTALL)
_XML_ERROR = re.compile(rb"\s*<\?xml[^>]*>\s*<Error>")
# Control characters that no text has: not white space, not the escape of a terminal.
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_SENTENCE_ENDS = tuple(".!?…。！？।؟\"'”’»)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileKind:
    """The form of a file.

    Attributes:
        suffix: Its format, one of `FORMATS`.
        compression: See `unpacking.compression_of`.
        encoding: What its text is in, a name of Python's codecs.
        by_lines: A line of .txt is a document, a line of JSON is a record. Else blank lines part
            documents, and JSON values may go over many lines.
    """

    suffix: str
    compression: str | None
    encoding: str
    by_lines: bool

    @property
    def has_ranges(self) -> bool:
        """True if the file can be read in ranges: a line shows where a document begins."""
        is_plain = self.compression is None and self.encoding == "utf-8"
        return is_plain and self.suffix != ".parquet" and (self.by_lines or self.suffix == ".txt")


def file_format(path: str | os.PathLike) -> str:
    """Return the suffix of a name without that of a compression: ".jsonl" of "a.jsonl.gz"."""
    plain = pathlib.PurePath(path)
    if plain.suffix.lower() in COMPRESSIONS:
        plain = plain.with_suffix("")
    return plain.suffix.lower()


def look_at(path: str) -> FileKind:
    """Look at the beginning of a file.

    Raises:
        UserError: if it is no text: a pointer of Git LFS, a page of HTML, a binary file.
    """
    with open(path, "rb") as file:
        first = file.read(16)
    compression = compression_of(first)
    beginning = _beginning(path, compression)
    is_whole = len(beginning) < LOOK_BYTES
    suffix = file_format(path)

    _refuse_what_is_no_text(path, beginning, compression)
    if suffix == ".parquet":
        if beginning and not beginning.startswith((b"PAR1", b"PARE")):
            raise UserError(
                f"{path}: not a readable parquet file (it begins with {beginning[:16]!r})"
            )
        return FileKind(suffix=suffix, compression=compression, encoding="utf-8", by_lines=False)

    encoding = _encoding(beginning)
    if encoding == "utf-8":
        _refuse_what_is_not_utf8(path, beginning)
    else:
        beginning = beginning.decode(encoding, errors="replace").encode("utf-8")
    text = beginning.removeprefix(_BOM)
    by_lines = _are_documents if suffix == ".txt" else _are_records
    return FileKind(
        suffix=suffix,
        compression=compression,
        encoding=encoding,
        by_lines=by_lines(_whole_lines(text, is_whole), is_whole),
    )


def _beginning(path: str, compression: str | None) -> bytes:
    """Return the first `LOOK_BYTES` of unpacked content, or less if there is less."""
    content = bytearray()
    # What can be read of a damaged archive is looked at.
    with contextlib.suppress(EOFError):
        for block in read_blocks(path, compression):
            content += block
            if len(content) >= LOOK_BYTES:
                break
    return bytes(content[:LOOK_BYTES])


def _refuse_what_is_no_text(path: str, beginning: bytes, compression: str | None) -> None:
    """Raise a UserError for content that is known by its first bytes."""
    if beginning.startswith(_LFS_POINTER):
        raise UserError(
            f"{path}: only a pointer of Git LFS, not the text; run git lfs pull in its repository"
        )
    suffix = file_format(path)
    for magic, what in _BINARY.items():
        if beginning.startswith(magic) and not (magic == b"PAR1" and suffix == ".parquet"):
            _refuse(path, f"is {what}")
    if compression and compression_of(beginning):
        _refuse(path, "is packed twice; unpack it once")
    if _HTML.match(beginning[:_PROBED_BYTES]) or _XML_ERROR.match(beginning[:_PROBED_BYTES]):
        _refuse(
            path,
            "is a web page, such as a server's message that there is no such file; download it "
            "again, or take the text out of the page",
        )


def _refuse_what_is_not_utf8(path: str, beginning: bytes) -> None:
    """Raise a UserError for binary content, and for text in an encoding that is not known."""
    probed = beginning[:_PROBED_BYTES]
    n_control = len(_CONTROL.findall(probed))
    if n_control > max(8, len(probed) // 10):
        _refuse(path, f"holds binary data, no text; {_AWAY}, or unpack it")
    text = probed.decode("utf-8", errors="replace")
    n_invalid = text.count("\ufffd")
    if n_invalid > max(16, len(text) // 10):
        _refuse(
            path,
            "is neither UTF-8 nor UTF-16; convert it, as with iconv -f GB18030 -t UTF-8 (or "
            "whatever it is in)",
        )


def _refuse(path: str, what: str) -> NoReturn:
    raise UserError(f"{path}: {what}")


def _encoding(beginning: bytes) -> str:
    """Name the encoding: by a byte order mark, or where only one form of UTF-16 makes sense."""
    for mark, name in _ENCODINGS.items():
        if beginning.startswith(mark):
            return name
    probed = beginning[: min(len(beginning), _PROBED_BYTES) & ~1]
    # Text in UTF-8 has no zero bytes; in UTF-16 each space and line end has one.
    if b"\0" not in probed:
        return "utf-8"
    plausible = [name for name in ("utf-16-le", "utf-16-be") if _is_plausible(probed, name)]
    return plausible[0] if len(plausible) == 1 else "utf-8"


def _is_plausible(content: bytes, encoding: str) -> bool:
    """Return True if content makes sense in a form of UTF-16: assigned characters, spaces."""
    # A pair may be cut at the end.
    text = content.decode(encoding, errors="ignore")
    if len(text) < len(content) // 2 * 0.99:
        return False
    n_odd = 0
    for char in text:
        is_white = char in "\n\r\t"
        n_odd += not is_white and unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs")
    return n_odd <= len(text) // 100 and any(char in text for char in " \n。，")


def _whole_lines(text: bytes, is_whole: bool) -> list[bytes]:
    """Split the beginning of a file in lines; the last one counts if nothing follows it."""
    lines = [line.strip() for line in text.split(b"\n")]
    return lines if is_whole or len(lines) == 1 else lines[:-1]


def _are_documents(lines: list[bytes], is_whole: bool) -> bool:
    """Return True if each line of a .txt file is a document.

    Blank lines part documents where there are any. Without them, a long file of lines that are
    sentences or paragraphs is a list of documents. Text that is wrapped at a width is not.
    """
    while lines and not lines[-1]:
        lines.pop()
    written = [line for line in lines if line]
    # Blank lines at the beginning part nothing.
    n_groups = 0
    is_blank = True
    for line in lines:
        n_groups += is_blank and bool(line)
        is_blank = not line
    if n_groups > 1 and len(written) / n_groups <= _LONG_GROUP_LINES:
        return False

    if is_whole and len(written) < MANY_LINES:
        return False
    mean_bytes = sum(map(len, written)) / max(1, len(written))
    return mean_bytes >= _SENTENCE_BYTES and not _is_wrapped(written)


def _is_wrapped(lines: list[bytes]) -> bool:
    """Return True if a width would explain the line ends: the next word had no room.

    Sentences of one length would look like that, but each ends like a sentence.
    """
    if len(lines) < 2:
        return False
    width = sorted(map(len, lines))[len(lines) * 98 // 100]
    if width > _WIDEST_WRAP_BYTES:
        return False

    n_full = n_ends = 0
    for line, following in zip(lines, lines[1:], strict=False):
        first_word = following.partition(b" ")[0][:_FIRST_WORD_BYTES]
        n_full += len(line) + 1 + len(first_word) > width
        n_ends += line.decode("utf-8", errors="replace").endswith(_SENTENCE_ENDS)
    n_pairs = len(lines) - 1
    return n_full >= 0.8 * n_pairs and n_ends < 0.5 * n_pairs


def _are_records(lines: list[bytes], is_whole: bool) -> bool:
    """Return True if each line of a JSON file is a record.

    Else it is one list, or objects over many lines. A first line that goes on after the beginning
    is a long record.
    """
    while lines and not lines[0]:
        del lines[0]
    if not lines or not lines[0].startswith((b"{", b"[")):
        return True
    if lines[0].startswith(b"["):
        return False
    if _is_object(lines[0]) or (len(lines) == 1 and not is_whole):
        return True

    # Either the first record is damaged, or it goes over several lines.
    with contextlib.suppress(ValueError, RecursionError):
        json.JSONDecoder().raw_decode(b"\n".join(lines).decode("utf-8", errors="replace"))
        return False
    return any(map(_is_object, lines[:_PROBED_LINES]))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False

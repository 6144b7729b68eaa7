"""Reads and cleans parts of the corpus into files, and reads those files again.

A spooled part is three files: `<stem>.text.zst` (documents one after the other), `<stem>.rows` (a
record `ROW` for each) and `<stem>.signatures` (MinHash, if it is used).
"""

from __future__ import annotations

import collections
import dataclasses
import io
import itertools
import operator
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import zstandard

from cramjax.data import dedup
from cramjax.data.clean import CleanRules, clean, cut
from cramjax.data.heldout import HeldOut
from cramjax.data.jobs import CheckedFile, Files
from cramjax.data.sealed import Damaged
from cramjax.data.source import Part, TextSource

ROW = np.dtype(
    [("n_bytes", "<u8"), ("n_chars", "<u4"), ("piece", "<u4"), ("hash", "<u8"), ("split", "<u8")]
)
"""A kept piece: its size, its number within its document, and the document's two hashes."""

MAX_DOCUMENT_CHARS = 1 << 24
"""A longer document is cut: a record may be a library of books, and each step holds one whole."""

_BLOCK_ROWS = 1 << 15
_SIGNATURE_BATCH_CHARS = 1 << 22
_BUFFER_BYTES = 1 << 20
# Records of each reason for which a dropped record is named.
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadJob:
    """Reads and cleans one part.

    The record has documents, bytes, deleted (characters), dropped (reason → count) and examples.

    Attributes:
        source: Its source.
        part: The part.
        key: Index of the source, and number of the part in reading order.
        stem: See `Job`.
        rules: How to clean.
        with_signatures: Compute MinHash signatures.
        limit_bytes: Cleaned text after which the rest of the part cannot be needed, or None.
        heldout: How long documents are held out.
    """

    source: TextSource
    part: Part
    key: tuple[int, int]
    stem: pathlib.Path
    rules: CleanRules
    with_signatures: bool
    limit_bytes: float | None
    heldout: HeldOut = HeldOut()

    @property
    def name(self) -> str:
        """See `Job`."""
        return self.part.name

    def facts(self) -> list[Any]:
        """See `Job`."""
        return [self.part.key]

    def make(self, files: Files) -> dict[str, Any]:
        """See `Job`."""
        dropped: collections.Counter[str] = collections.Counter()
        examples: list[str] = []
        n_deleted = 0

        def drop(reason: str, where: str) -> None:
            dropped[reason] += 1
            if where and dropped[reason] <= _EXAMPLES:
                examples.append(f"{reason}: {where}")

        signature_file = files.open("signatures")
        with compressed(files.open("text.zst")) as text_file:
            signer = _Signer(signature_file) if self.with_signatures else None
            writer = _PartWriter(text_file, files.open("rows"), signer, self.heldout)
            for text in bounded(self.source.read(self.part, drop)):
                cleaned = clean(text, self.rules)
                n_deleted += cleaned.n_deleted
                if cleaned.reason:
                    dropped[cleaned.reason] += 1
                    continue
                writer.add(cleaned.pieces)
                if self.limit_bytes is not None and writer.n_bytes >= self.limit_bytes:
                    break
            writer.finish()

        return {
            "documents": writer.n_documents,
            "bytes": writer.n_bytes,
            "deleted": n_deleted,
            "dropped": dict(dropped),
            "examples": examples,
        }


def bounded(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts, those of over `MAX_DOCUMENT_CHARS` in pieces, each a document of its own."""
    for text in texts:
        yield from cut(text, MAX_DOCUMENT_CHARS)


def compressed(file: CheckedFile) -> zstandard.ZstdCompressionWriter:
    """Returns a context that compresses what is written to it into `file`."""
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
    return compressor.stream_writer(file, closefd=False)  # pyright: ignore[reportArgumentType]


def open_compressed(path: pathlib.Path) -> io.BufferedReader:
    """Open a file that `compressed` has written, for `read_text`."""
    reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
    return io.BufferedReader(reader, _BUFFER_BYTES)


class _PartWriter:
    """Writes documents to the text and the rows of a part, and counts them."""

    def __init__(
        self, text_file: Any, rows_file: CheckedFile, signer: _Signer | None, heldout: HeldOut
    ):
        self._heldout = heldout
        self._text_file = text_file
        self._rows_file = rows_file
        self._signer = signer
        self._rows: list[tuple[int, ...]] = []
        self.n_documents = 0
        self.n_bytes = 0

    def add(self, pieces: list[str]) -> None:
        """Write one document, which is cut into `pieces`."""
        document = "".join(pieces)
        content_hash, split_hash = dedup.document_hashes(document)
        if self._signer:
            self._signer.add(document)

        self.n_documents += 1
        for number, (piece, split) in enumerate(self._heldout.split(pieces, split_hash)):
            encoded = piece.encode("utf-8")
            self._text_file.write(encoded)
            self._rows.append((len(encoded), len(piece), number, content_hash, split))
            self.n_bytes += len(encoded)
        if len(self._rows) >= _BLOCK_ROWS:
            self._write_rows()

    def finish(self) -> None:
        """Write what is left."""
        self._write_rows()
        if self._signer:
            self._signer.flush()

    def _write_rows(self) -> None:
        self._rows_file.write(np.array(self._rows, ROW).tobytes())
        self._rows = []


class _Signer:
    """Writes MinHash signatures in batches, so that few shingles are in memory."""

    def __init__(self, file: CheckedFile):
        self._file = file
        self._texts: list[str] = []
        self._n_chars = 0

    def add(self, text: str) -> None:
        self._texts.append(text)
        self._n_chars += len(text)
        if self._n_chars >= _SIGNATURE_BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        if self._texts:
            self._file.write(dedup.signatures(self._texts).tobytes())
        self._texts = []
        self._n_chars = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Consecutive parts of a source that are read: the unit of all stages after reading.

    Attributes:
        number: Counts the groups of all sources, in reading order.
        source: Index of the source.
        jobs: The jobs that read the parts.
        limit_bytes: Text of the parts that is within the source's share of `max_mb`.
    """

    number: int
    source: int
    jobs: tuple[ReadJob, ...]
    limit_bytes: float

    @property
    def name(self) -> str:
        """A name for people."""
        return self.jobs[0].name

    def facts(self) -> list[Any]:
        """Return what tells this group from another, in values of JSON."""
        return [self.source, self.jobs[0].stem.name, len(self.jobs), self.limit_bytes]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the records `ROW` within the share, in blocks [n].

        The piece that reaches the share's end is the last one. A document does not straddle parts.

        Raises:
            Damaged: if the files hold less than they should.
        """
        for _, rows in self._blocks():
            yield rows

    def _blocks(self) -> Iterator[tuple[ReadJob, np.ndarray]]:
        left_bytes = self.limit_bytes
        for job in self.jobs:
            with _path(job, "rows").open("rb") as file:
                while left_bytes > 0 and len(rows := np.fromfile(file, ROW, _BLOCK_ROWS)):
                    before = np.concatenate([[0], np.cumsum(rows["n_bytes"].astype(np.int64))])
                    n_rows = int((before[:-1] < left_bytes).sum())
                    left_bytes -= int(before[n_rows])
                    yield job, rows[:n_rows]
        if left_bytes > 0:
            raise Damaged(f"{self.jobs[-1].stem}.rows", _path(self.jobs[-1], "json"))

    def signatures(self, n_documents: int) -> Iterator[np.ndarray]:
        """Yield the MinHash signatures of the next documents, uint16 [n, N_HASHES].

        Those of the parts' documents come one after the other, also beyond the share. Each array
        has at most `n_documents`.
        """
        for job in self.jobs:
            with _path(job, "signatures").open("rb") as file:
                n_values = n_documents * dedup.N_HASHES
                while len(values := np.fromfile(file, np.uint16, n_values)):
                    yield values.reshape(-1, dedup.N_HASHES)

    def texts(self, keep: np.ndarray) -> Iterator[tuple[np.void, str]]:
        """Yield the record and the text of each piece that is kept.

        Args:
            keep: bool [n], one for each record within the share.

        Raises:
            Damaged: if a file is damaged or ends before.
        """
        start = 0
        for job, blocks in itertools.groupby(self._blocks(), operator.itemgetter(0)):
            path = _path(job, "text.zst")
            try:
                with open_compressed(path) as file:
                    for _, rows in blocks:
                        yield from _texts(file, rows, keep[start : start + len(rows)])
                        start += len(rows)
            except (zstandard.ZstdError, UnicodeDecodeError, EOFError) as error:
                raise Damaged(f"{path} ({error})", _path(job, "json")) from error


def _texts(
    file: io.BufferedReader, rows: np.ndarray, keep: np.ndarray
) -> Iterator[tuple[np.void, str]]:
    """Read the next pieces of a text file, which has one for each of `rows`."""
    ends = np.cumsum(rows["n_bytes"].astype(np.int64)).tolist()
    position = 0
    for index in np.flatnonzero(keep).tolist():
        n_bytes = int(rows["n_bytes"][index])
        _skip(file, ends[index] - n_bytes - position)
        content = file.read(n_bytes)
        if len(content) != n_bytes:
            raise EOFError("it is cut short")
        yield rows[index], content.decode("utf-8")
        position = ends[index]
    if ends:
        _skip(file, ends[-1] - position)


def _skip(file: io.BufferedReader, n_bytes: int) -> None:
    """Read over bytes; the file is compressed and has no index."""
    while n_bytes > 0:
        n_read = len(file.read(min(n_bytes, _BUFFER_BYTES)))
        if not n_read:
            raise EOFError("it is cut short")
        n_bytes -= n_read


def _path(job: ReadJob, ending: str) -> pathlib.Path:
    return job.stem.with_name(f"{job.stem.name}.{ending}")

"""Reads and cleans parts of the corpus in worker processes, into files that a killed job keeps.

A spooled part is four files: `<stem>.text.zst` (documents one after the other), `<stem>.rows` (a
record `ROW` for each), `<stem>.signatures` (MinHash, if it is used), and `<stem>.json`, which is
written last and has the checksums of the others: only with it the part is whole. A part that is
not is read again. Workers import neither JAX nor the user's main program.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import logging
import multiprocessing
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, BinaryIO

import numpy as np
import zstandard

from cramjax import stop
from cramjax.data import dedup
from cramjax.data.clean import CleanRules, clean, cut
from cramjax.data.heldout import HeldOut
from cramjax.data.sealed import Damaged, seal, unseal
from cramjax.data.source import Part, TextSource
from cramjax.errors import RunFailed

_LOG = logging.getLogger("cramjax")
ROW = np.dtype(
    [("n_bytes", "<u8"), ("n_chars", "<u4"), ("piece", "<u4"), ("hash", "<u8"), ("split", "<u8")]
)
"""A kept piece: its size, its number within its document, and the document's two hashes."""

MAX_DOCUMENT_CHARS = 1 << 24
"""A longer document is cut: a record may be a library of books, and each step holds one whole."""

_BLOCK_ROWS = 1 << 15
_SIGNATURE_BATCH_CHARS = 1 << 22
_TEXT_BUFFER_BYTES = 1 << 20
# Eight clean more than the tokenizer takes on any machine, and keep memory bounded.
_MAX_WORKERS = 8
# Records of each reason for which a dropped record is named.
_EXAMPLES = 3
_WAIT_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One part to spool.

    Attributes:
        source: Its source.
        part: The part.
        stem: Path of its files, without their endings.
        rules: How to clean.
        with_signatures: Compute MinHash signatures.
        limit_bytes: Cleaned text after which the rest of the part cannot be needed, or None.
        heldout: How long documents are held out.
    """

    source: TextSource
    part: Part
    stem: pathlib.Path
    rules: CleanRules
    with_signatures: bool
    limit_bytes: float | None
    heldout: HeldOut = HeldOut()


def spool_part(job: Job) -> dict[str, Any]:
    """Read and clean `job.part` into files.

    Returns:
        The summary that `<stem>.json` holds: documents, bytes, deleted (characters), dropped
        (reason → count), examples, files (ending → size and CRC-32).
    """
    dropped: collections.Counter[str] = collections.Counter()
    examples: list[str] = []
    n_deleted = 0

    def drop(reason: str, where: str) -> None:
        dropped[reason] += 1
        if where and dropped[reason] <= _EXAMPLES:
            examples.append(f"{reason}: {where}")

    # Two processes may write the same part, if the first one's parent was killed.
    temporary = {
        ending: job.stem.with_name(f"{job.stem.name}.{ending}.{os.getpid()}.tmp")
        for ending in ("text.zst", "rows", "signatures")
    }
    with contextlib.ExitStack() as stack:
        opened = {end: stack.enter_context(path.open("wb")) for end, path in temporary.items()}
        compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        text_file = stack.enter_context(compressor.stream_writer(opened["text.zst"], closefd=False))
        signer = _Signer(opened["signatures"]) if job.with_signatures else None
        writer = _PartWriter(text_file, opened["rows"], signer, job.heldout)

        for text in bounded(job.source.read(job.part, drop)):
            cleaned = clean(text, job.rules)
            n_deleted += cleaned.n_deleted
            if cleaned.reason:
                dropped[cleaned.reason] += 1
                continue
            writer.add(cleaned.pieces)
            if job.limit_bytes is not None and writer.n_bytes >= job.limit_bytes:
                break
        if signer:
            signer.flush()

    files = {ending: _checksum(path) for ending, path in temporary.items()}
    for ending, path in temporary.items():
        path.replace(job.stem.with_name(f"{job.stem.name}.{ending}"))
    summary = {
        "documents": writer.n_documents,
        "bytes": writer.n_bytes,
        "deleted": n_deleted,
        "dropped": dict(dropped),
        "examples": examples,
        "files": files,
    }
    unfinished_summary = job.stem.with_name(f"{job.stem.name}.json.{os.getpid()}.tmp")
    unfinished_summary.write_text(seal(summary))
    unfinished_summary.replace(job.stem.with_name(f"{job.stem.name}.json"))
    return summary


def bounded(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts, those of over `MAX_DOCUMENT_CHARS` in pieces, each a document of its own."""
    for text in texts:
        yield from cut(text, MAX_DOCUMENT_CHARS)


def _checksum(path: pathlib.Path) -> list[int]:
    """Returns size in bytes and CRC-32 of a file."""
    n_bytes = checksum = 0
    with path.open("rb") as file:
        while block := file.read(_TEXT_BUFFER_BYTES):
            n_bytes += len(block)
            checksum = zlib.crc32(block, checksum)
    return [n_bytes, checksum]


class _PartWriter:
    """Writes documents to the text and the rows of a part, and counts them."""

    def __init__(
        self, text_file: Any, rows_file: BinaryIO, signer: _Signer | None, heldout: HeldOut
    ):
        self._heldout = heldout
        self._text_file = text_file
        self._rows_file = rows_file
        self._signer = signer
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
            row = np.array((len(encoded), len(piece), number, content_hash, split), ROW)
            self._rows_file.write(row.tobytes())
            self.n_bytes += len(encoded)


class _Signer:
    """Writes MinHash signatures in batches, so that few shingles are in memory."""

    def __init__(self, file: BinaryIO):
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
class SpooledPart:
    """A whole part on disk.

    Attributes:
        stem: Path of its files, without their endings.
        summary: See `spool_part`.
    """

    stem: pathlib.Path
    summary: dict[str, Any]

    def blocks(self, with_signatures: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield the part in blocks, in order.

        Args:
            with_signatures: Read the signatures too.

        Yields:
            Rows (`ROW` [n]), and the signatures of the documents that begin among them (uint16
            [m, N_HASHES]), or None.

        Raises:
            Damaged: if the files do not fit the summary.
        """
        with contextlib.ExitStack() as stack:
            rows_file = stack.enter_context(self.path("rows").open("rb"))
            signature_file = stack.enter_context(self.path("signatures").open("rb"))
            n_bytes = 0
            while len(rows := np.fromfile(rows_file, ROW, _BLOCK_ROWS)):
                n_bytes += int(rows["n_bytes"].sum())
                signatures = None
                if with_signatures:
                    n_documents = int((rows["piece"] == 0).sum())
                    signatures = self._read_signatures(signature_file, n_documents)
                yield rows, signatures

        if n_bytes != self.summary["bytes"]:
            raise Damaged(f"{self.stem}.rows", self.path("json"))

    def _read_signatures(self, file: BinaryIO, n_documents: int) -> np.ndarray:
        """Read the next signatures, uint16 [n_documents, N_HASHES]."""
        n_values = n_documents * dedup.N_HASHES
        values = np.fromfile(file, np.uint16, n_values)
        if len(values) != n_values:
            raise Damaged(f"{self.stem}.signatures", self.path("json"))
        return values.reshape(-1, dedup.N_HASHES)

    def open_text(self) -> io.BufferedReader:
        """Open the text of all documents, one after the other; read it with `read_text`."""
        reader = zstandard.ZstdDecompressor().stream_reader(
            self.path("text.zst").open("rb"), closefd=True
        )
        return io.BufferedReader(reader, _TEXT_BUFFER_BYTES)

    def path(self, ending: str) -> pathlib.Path:
        """Return the path of the part's file with that ending."""
        return self.stem.with_name(f"{self.stem.name}.{ending}")


def read_text(file: io.BufferedReader, n_bytes: int) -> str:
    """Read the next document of `SpooledPart.open_text`.

    Raises:
        Damaged: if the file is damaged or ends before.
    """
    try:
        content = file.read(n_bytes)
        if len(content) != n_bytes:
            raise Damaged("a text file is cut short")
        return content.decode("utf-8")
    except (zstandard.ZstdError, UnicodeDecodeError) as error:
        raise Damaged(f"a text file: {error}") from error


class Spool:
    """Hands out parts in any order, and reads ahead on all cores. Use it as a context."""

    def __init__(
        self,
        jobs: dict[tuple[int, int], Job],
        n_workers: int | None = None,
        *,
        packed: Collection[tuple[int, int]] = (),
    ):
        """Start no process yet.

        Args:
            jobs: (source, part number) → job, in the order in which they will be asked for.
            n_workers: Processes (None: one per core, at most 8).
            packed: The parts whose text is not needed any more.
        """
        self._jobs = jobs
        self._packed = frozenset(packed)
        # Parts on the disk whose content was compared with the checksums.
        self._compared: set[tuple[int, int]] = set()
        self._has_warned = False

        self._order = list(jobs)
        self._place = {key: place for place, key in enumerate(self._order)}
        self._n_workers = n_workers or min(_n_cores(), _MAX_WORKERS)
        self._futures: dict[tuple[int, int], Future] = {}
        # Cleaned bytes of each part that was handed out.
        self._bytes: dict[tuple[int, int], int] = {}
        self._finished_sources: set[int] = set()
        self._pool: Executor | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is None:
            return
        processes: list[Any] = []
        if isinstance(self._pool, ProcessPoolExecutor):
            processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        # What they read is not needed, or will be read again.
        for process in processes:
            process.terminate()

    def finish_source(self, source: int) -> None:
        """Stop reading ahead in `source`: no further part of it will be asked for."""
        self._finished_sources.add(source)
        for key, future in self._futures.items():
            if key[0] == source:
                future.cancel()

    def get(
        self, key: tuple[int, int], on_wait: Callable[[str, int], None] | None = None
    ) -> SpooledPart:
        """Return a part, once it is whole.

        Args:
            key: (source, part number).
            on_wait: Called every second until then, with the part's name and the compressed bytes
                so far.

        Raises:
            UserError, RunFailed: what reading the part raised.
            RunFailed: if the disk is full or a worker was killed.
        """
        # Submitted before those ahead, so that it is read first.
        summary = self._on_disk(key)
        if summary is not None and not self._is_whole(key, summary):
            self._warn_once(self._jobs[key].stem)
            self._futures.pop(key, None)
            summary = None
        if summary is None:
            self._submit(key)
        self._read_ahead(key)

        if summary is None:
            try:
                summary = self._wait(key, on_wait)
            except BrokenProcessPool as error:
                # A signal to the whole group reaches this process as well, and is the answer.
                time.sleep(_WAIT_S)
                raise RunFailed(
                    f"a process that read {self._jobs[key].part.name} was killed, probably for "
                    "memory; what was finished is kept: run the command again"
                ) from error
        self._bytes[key] = summary["bytes"]
        return SpooledPart(stem=self._jobs[key].stem, summary=summary)

    def _warn_once(self, stem: pathlib.Path) -> None:
        if not self._has_warned:
            _LOG.warning(
                "%s: damaged, or of another version; such parts of the text are read again", stem
            )
        self._has_warned = True

    def _wait(
        self, key: tuple[int, int], on_wait: Callable[[str, int], None] | None
    ) -> dict[str, Any]:
        job = self._jobs[key]
        while True:
            with contextlib.suppress(TimeoutError):
                return self._futures[key].result(timeout=_WAIT_S)
            # Reading may itself have raised a TimeoutError.
            if self._futures[key].done():
                return self._futures[key].result()

            if on_wait is not None:
                unfinished = job.stem.parent.glob(f"{job.stem.name}.text.zst.*.tmp")
                n_bytes = sum(path.stat().st_size for path in unfinished if path.exists())
                on_wait(job.part.name, n_bytes)

    def _read_ahead(self, key: tuple[int, int]) -> None:
        """Submit the parts that come after `key`, two for each worker."""
        place = self._place[key] + 1
        for ahead in self._order[place : place + 2 * self._n_workers]:
            if not self._has_enough(ahead) and self._on_disk(ahead) is None:
                self._submit(ahead)

    def _has_enough(self, ahead: tuple[int, int]) -> bool:
        """Return True if the parts read so far make the part `ahead` superfluous."""
        source = ahead[0]
        if source in self._finished_sources:
            return True
        limit = self._jobs[ahead].limit_bytes
        n_read = sum(n_bytes for (owner, _), n_bytes in self._bytes.items() if owner == source)
        return limit is not None and n_read >= limit

    def _submit(self, key: tuple[int, int]) -> None:
        if key in self._futures and not self._futures[key].cancelled():
            return
        if self._pool is None:
            self._pool = _open_pool(self._n_workers)
        with _without_main_program(), stop.held_back():
            self._futures[key] = self._pool.submit(spool_part, self._jobs[key])

    def _on_disk(self, key: tuple[int, int]) -> dict[str, Any] | None:
        """Return the summary of a part whose files are there, else None."""
        part = SpooledPart(stem=self._jobs[key].stem, summary={})
        try:
            summary = unseal(part.path("json").read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}  # no part is whole with this
        # A part that was packed has no text any more. It is needed if the journal was lost.
        if key not in self._packed and not part.path("text.zst").exists():
            return None
        return summary

    def _is_whole(self, key: tuple[int, int], summary: dict[str, Any]) -> bool:
        """Compare the files of a part with their checksums, once."""
        if key not in self._compared:
            part = SpooledPart(stem=self._jobs[key].stem, summary=summary)
            endings = {"text.zst", "rows", "signatures"}
            if key in self._packed:
                endings.remove("text.zst")
            for ending in endings:
                path = part.path(ending)
                expected = summary.get("files", {}).get(ending)
                if not path.exists() or _checksum(path) != expected:
                    return False
            self._compared.add(key)
        return True


def _open_pool(n_workers: int) -> Executor:
    """Returns worker processes, or a thread where the system has no semaphores for processes.

    They lie in /dev/shm, which a container may not let anybody write.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with stop.held_back(), _quiet_tracker():
            return ProcessPoolExecutor(
                n_workers, context, initializer=_start_worker, initargs=(os.getpid(),)
            )
    except (OSError, ImportError):
        return ThreadPoolExecutor(1)


def _n_cores() -> int:
    """Count the cores that this process may use, or all if the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _without_main_program() -> Iterator[None]:
    """Start workers that do not import the main program.

    It may import JAX or lack a `__main__` guard.
    """
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    try:
        main.__spec__ = None
        if "__file__" in hidden:
            del main.__file__
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


@contextlib.contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Start Python's tracker of semaphores so that it does not warn.

    It removes those of a process that left at a signal, and that is no news.
    """
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        yield
    finally:
        sys.warnoptions.pop()


def _start_worker(parent: int) -> None:
    """Prepare a worker: it ends with its parent."""
    stop.watch_parent(parent, functools.partial(os._exit, 1))

"""Parts of the corpus, read and cleaned by worker processes into compressed files from which a killed job goes on.

A spooled part is `<stem>.text.zst` (documents one after the other), `<stem>.rows` (a record each, `ROW`), with MinHash
`<stem>.signatures`, and `<stem>.json`, written last: it alone says that the part is whole. Workers import neither JAX
nor the user's main program.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import zstandard

from cramjax.data import dedup
from cramjax.data.clean import CleanRules, clean
from cramjax.errors import RunFailed

ROW = np.dtype(
    [("n_bytes", "<u8"), ("n_chars", "<u4"), ("piece", "<u4"), ("hash", "<u8"), ("split", "<u8")]
)
"""A kept piece: its size, its number within its document, and the two hashes of the document."""

_BLOCK_ROWS = 1 << 15
_SIGNATURE_BATCH_CHARS = 1 << 22
_MAX_WORKERS = (
    8  # eight clean more than the tokenizer takes on any machine, and keep memory bounded
)
_EXAMPLES = 3
_WAIT_S = 1.0


class Damaged(Exception):
    """A file of an unfinished preparation is not what was written there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One part to spool. `limit_bytes`: cleaned text after which the rest of the part cannot be needed."""

    source: Any
    part: Any
    stem: pathlib.Path
    rules: CleanRules
    with_signatures: bool
    limit_bytes: float | None


def spool_part(job: Job) -> dict[str, Any]:
    """Read and clean `job.part` into files; returns (and writes) counts: documents, bytes, dropped, examples."""
    dropped, examples = collections.Counter(), []

    def drop(reason: str, where: str) -> None:
        dropped[reason] += 1
        if dropped[reason] <= _EXAMPLES:
            examples.append(f"{reason}: {where}")

    temporary = {
        end: job.stem.with_name(f"{job.stem.name}.{end}.{os.getpid()}.tmp")
        for end in ("text.zst", "rows", "signatures")
    }
    n_documents = n_bytes = 0
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
    with contextlib.ExitStack() as stack:
        raw = {end: stack.enter_context(path.open("wb")) for end, path in temporary.items()}
        text_file = stack.enter_context(compressor.stream_writer(raw["text.zst"], closefd=False))
        signer = _Signer(raw["signatures"]) if job.with_signatures else None
        for text in job.source.read(job.part, drop):
            pieces, reason = clean(text, job.rules)
            if reason:
                dropped[reason] += 1
                continue
            n_documents += 1
            whole = "".join(pieces)
            hashes = dedup.document_hashes(whole)
            if signer:
                signer.add(whole)
            for number, piece in enumerate(pieces):
                encoded = piece.encode("utf-8")
                text_file.write(encoded)
                raw["rows"].write(
                    np.array((len(encoded), len(piece), number, *hashes), ROW).tobytes()
                )
                n_bytes += len(encoded)
            if job.limit_bytes is not None and n_bytes >= job.limit_bytes:
                break
        if signer:
            signer.flush()
    for end, path in temporary.items():
        path.replace(job.stem.with_name(f"{job.stem.name}.{end}"))
    summary = {
        "documents": n_documents,
        "bytes": n_bytes,
        "dropped": dict(dropped),
        "examples": examples,
    }
    whole_mark = job.stem.with_name(f"{job.stem.name}.json.{os.getpid()}.tmp")
    whole_mark.write_text(json.dumps(summary))
    whole_mark.replace(job.stem.with_name(f"{job.stem.name}.json"))
    return summary


class _Signer:
    """Writes MinHash signatures in batches, so that few shingles are in memory."""

    def __init__(self, file: Any):
        self._file, self._texts, self._n_chars = file, [], 0

    def add(self, text: str) -> None:
        self._texts.append(text)
        self._n_chars += len(text)
        if self._n_chars >= _SIGNATURE_BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        if self._texts:
            self._file.write(dedup.signatures(self._texts).tobytes())
        self._texts, self._n_chars = [], 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpooledPart:
    """A finished part on disk."""

    stem: pathlib.Path
    summary: dict[str, Any]

    def blocks(self, with_signatures: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Rows (`ROW` [n]) and signatures of the documents that begin among them (uint16 [m, N_HASHES]), in order."""
        with contextlib.ExitStack() as stack:
            rows_file = stack.enter_context(self.path("rows").open("rb"))
            signature_file = stack.enter_context(self.path("signatures").open("rb"))
            n_bytes = 0
            while len(rows := np.fromfile(rows_file, ROW, _BLOCK_ROWS)):
                n_bytes += int(rows["n_bytes"].sum())
                signatures = None
                if with_signatures:
                    n_values = int((rows["piece"] == 0).sum()) * dedup.N_HASHES
                    signatures = np.fromfile(signature_file, np.uint16, n_values)
                    if len(signatures) != n_values:
                        raise Damaged(str(self.stem))
                    signatures = signatures.reshape(-1, dedup.N_HASHES)
                yield rows, signatures
        if n_bytes != self.summary["bytes"]:
            raise Damaged(str(self.stem))

    def open_text(self) -> io.BufferedReader:
        """The text of all documents, one after the other; read it with `read_text`."""
        reader = zstandard.ZstdDecompressor().stream_reader(
            self.path("text.zst").open("rb"), closefd=True
        )
        return io.BufferedReader(reader, 1 << 20)

    def path(self, end: str) -> pathlib.Path:
        """The file of this part with that ending."""
        return self.stem.with_name(f"{self.stem.name}.{end}")


def read_text(file: io.BufferedReader, n_bytes: int) -> str:
    """The next document of `SpooledPart.open_text`. Raises Damaged."""
    try:
        content = file.read(n_bytes)
    except zstandard.ZstdError as error:
        raise Damaged(str(error)) from error
    if len(content) != n_bytes:
        raise Damaged("a text file is cut short")
    return content.decode("utf-8")


class Spool:
    """Hands out parts in any order, reading ahead in the order of `jobs` with all cores.

    `jobs`: (source, part number) → Job, in the order in which they are going to be asked for. Use as a context.
    """

    def __init__(self, jobs: dict[tuple[int, int], Job], n_workers: int | None = None):
        self._jobs, self._order = jobs, list(jobs)
        self._place = {key: place for place, key in enumerate(self._order)}
        self._n_workers = n_workers or min(_n_cores(), _MAX_WORKERS)
        self._futures: dict[tuple[int, int], Future] = {}
        self._bytes: dict[tuple[int, int], int] = {}
        self._finished_sources: set[int] = set()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:  # what they read is not needed, or will be read again
                process.terminate()

    def finish_source(self, source: int) -> None:
        """No further part of `source` is going to be asked for."""
        self._finished_sources.add(source)
        for key, future in self._futures.items():
            if key[0] == source:
                future.cancel()

    def get(
        self, key: tuple[int, int], on_wait: Callable[[str, int], None] | None = None
    ) -> SpooledPart:
        """The part, once it is whole; `on_wait(name, compressed bytes so far)` is called every second until then.

        Raises:
            UserError, RunFailed: what reading it raised; RunFailed where the disk is full or a worker was killed.
        """
        if (found := self._on_disk(key)) is None:
            self._submit(key)
        self._read_ahead(key)
        if found is None:
            try:
                found = self._wait(key, on_wait)
            except BrokenProcessPool as error:
                raise RunFailed(
                    f"a process that read {self._jobs[key].part.name} was killed, probably for memory; what was "
                    "finished is kept: run the command again"
                ) from error
        self._bytes[key] = found["bytes"]
        return SpooledPart(stem=self._jobs[key].stem, summary=found)

    def _wait(
        self, key: tuple[int, int], on_wait: Callable[[str, int], None] | None
    ) -> dict[str, Any]:
        job = self._jobs[key]
        while True:
            with contextlib.suppress(TimeoutError):
                return self._futures[key].result(timeout=_WAIT_S)
            if self._futures[key].done():  # a TimeoutError of the source's own
                return self._futures[key].result()
            if on_wait is not None:
                unfinished = job.stem.parent.glob(f"{job.stem.name}.text.zst.*.tmp")
                on_wait(
                    job.part.name, sum(path.stat().st_size for path in unfinished if path.exists())
                )

    def _read_ahead(self, key: tuple[int, int]) -> None:
        place = self._place[key] + 1
        for ahead in self._order[place : place + 2 * self._n_workers]:
            if not self._has_enough(ahead) and self._on_disk(ahead) is None:
                self._submit(ahead)

    def _has_enough(self, ahead: tuple[int, int]) -> bool:
        """Whether what is read of a source makes its later parts superfluous."""
        source, limit = ahead[0], self._jobs[ahead].limit_bytes
        known = sum(n_bytes for (owner, _), n_bytes in self._bytes.items() if owner == source)
        return source in self._finished_sources or (limit is not None and known >= limit)

    def _submit(self, key: tuple[int, int]) -> None:
        if key in self._futures and not self._futures[key].cancelled():
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._n_workers, context, initializer=_start_worker, initargs=(os.getpid(),)
            )
        with _without_main_program():
            self._futures[key] = self._pool.submit(spool_part, self._jobs[key])

    def _on_disk(self, key: tuple[int, int]) -> dict[str, Any] | None:
        stem = self._jobs[key].stem
        try:
            return json.loads(stem.with_name(f"{stem.name}.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise Damaged(f"{stem}.json") from error


def _n_cores() -> int:
    # The cores this process may use, where the system can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _without_main_program() -> Iterator[None]:
    """Workers started meanwhile do not import the main program, which may import JAX or lack a __main__ guard."""
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


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C for all

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()

"""A job of a preparation: a pure function from files to files, recorded when they are whole.

A job writes files `<stem>.<ending>` under temporary names. When all are written they get their
names, and then `<stem>.json`, the job's record, which has their checksums and its own. Without it
the job counts as not done. So a job may be killed at any moment and done again, on any machine
that sees the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pathlib
import uuid
import zlib
from typing import Any, BinaryIO, Protocol

from cramjax.data.sealed import seal, unseal

_LOG = logging.getLogger("cramjax")
# Counted up when a job writes other files than before from the same input.
_VERSION = 1
_BLOCK_BYTES = 1 << 20


class Job(Protocol):
    """One job of a stage. It can be pickled, because another process does it."""

    @property
    def stem(self) -> pathlib.Path:
        """Path of its files, without their endings."""
        ...

    @property
    def name(self) -> str:
        """A name for people."""
        ...

    def facts(self) -> list[Any]:
        """Return, in values of JSON, what the files depend on beside corpus and configuration."""
        ...

    def make(self, files: Files) -> dict[str, Any]:
        """Write the files; returns what the record says of them, in values of JSON."""
        ...


class CheckedFile:
    """A file that is being written; it counts its bytes, their CRC-32 and their SHA-256."""

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        """Write to `file`, which lies at `path` for now."""
        self._file = file
        self.path = path
        self.n_bytes = 0
        self._crc32 = 0
        self._sha256: hashlib._Hash | None = None

    def with_sha256(self) -> CheckedFile:
        """Count the SHA-256 too; call it before anything is written."""
        self._sha256 = hashlib.sha256()
        return self

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes; returns how many."""
        self._file.write(content)
        self.n_bytes += len(content)
        self._crc32 = zlib.crc32(content, self._crc32)
        if self._sha256 is not None:
            self._sha256.update(content)
        return len(content)

    def flush(self) -> None:
        """Make what is written readable at `path`."""
        self._file.flush()

    @property
    def checksum(self) -> list[int]:
        """Size in bytes and CRC-32 of what was written."""
        return [self.n_bytes, self._crc32]

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written, in hexadecimal digits; needs `with_sha256`."""
        assert self._sha256 is not None
        return self._sha256.hexdigest()


class Files:
    """The files of a job that is being done."""

    def __init__(self, stem: pathlib.Path, stack: contextlib.ExitStack):
        """Write beside `stem`; `stack` closes the files."""
        self._stem = stem
        self._stack = stack
        # Two processes may do the same job, if the first one's parent was killed.
        self._token = uuid.uuid4().hex
        self._opened: dict[str, CheckedFile] = {}

    def open(self, ending: str) -> CheckedFile:
        """Open a new file of the job for writing."""
        path = self._temporary(ending)
        file = CheckedFile(self._stack.enter_context(path.open("wb")), path)
        self._opened[ending] = file
        return file

    def finish(self, facts: list[Any], summary: dict[str, Any]) -> dict[str, Any]:
        """Give the closed files their names and write the record; returns it."""
        checksums = {ending: file.checksum for ending, file in self._opened.items()}
        record = summary | {"facts": [_VERSION, *facts], "files": checksums}
        for ending, file in self._opened.items():
            file.path.replace(_path(self._stem, ending))
        temporary = self._temporary("json")
        temporary.write_text(seal(record), encoding="utf-8")
        temporary.replace(_path(self._stem, "json"))
        return record

    def remove(self) -> None:
        """Remove what was not finished."""
        for ending in (*self._opened, "json"):
            self._temporary(ending).unlink(missing_ok=True)

    def _temporary(self, ending: str) -> pathlib.Path:
        return _path(self._stem, f"{ending}.{self._token}.tmp")


def do(job: Job) -> dict[str, Any]:
    """Do a job, whatever there is of it already; returns its record."""
    job.stem.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = Files(job.stem, stack)
        try:
            with stack:
                summary = job.make(files)
            return files.finish(job.facts(), summary)
        except BaseException:
            files.remove()
            raise


class Ledger:
    """Tells which jobs are whole on the disk.

    The content of a file is compared with its checksum once. What this process has seen being
    made is believed.
    """

    def __init__(self):
        self._compared: set[pathlib.Path] = set()
        self._has_warned = False

    def record(self, job: Job, *endings: str) -> dict[str, Any] | None:
        """Return the record of a job that is done and whose files with `endings` are whole.

        Returns:
            None if the job has to be done. The first damaged file is said.
        """
        try:
            record = unseal(_path(job.stem, "json").read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            record = {}
        if record.get("facts") != [_VERSION, *job.facts()]:
            return self._damaged(job)

        for ending in endings:
            path = _path(job.stem, ending)
            # Files that are not needed any more are deleted. This one is needed again.
            if not path.exists():
                return None
            if path not in self._compared and _checksum(path) != record["files"].get(ending):
                return self._damaged(job)
            self._compared.add(path)
        return record

    def add(self, job: Job, record: dict[str, Any]) -> None:
        """Take in a job that was done just now."""
        self._compared.update(_path(job.stem, ending) for ending in record["files"])

    def _damaged(self, job: Job) -> None:
        if not self._has_warned:
            _LOG.warning(
                "%s: damaged, or of another version; it and others like it are made again", job.stem
            )
        self._has_warned = True


def delete(job: Job, *endings: str) -> None:
    """Delete files of a job that are not needed any more."""
    for ending in endings:
        _path(job.stem, ending).unlink(missing_ok=True)


def unfinished_bytes(job: Job, ending: str) -> int:
    """Return how many bytes there are of a file that is being written."""
    n_bytes = 0
    for path in job.stem.parent.glob(f"{job.stem.name}.{ending}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            n_bytes += path.stat().st_size
    return n_bytes


def _path(stem: pathlib.Path, ending: str) -> pathlib.Path:
    return stem.with_name(f"{stem.name}.{ending}")


def _checksum(path: pathlib.Path) -> list[int]:
    """Returns size in bytes and CRC-32 of a file."""
    n_bytes = checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            n_bytes += len(block)
            checksum = zlib.crc32(block, checksum)
    return [n_bytes, checksum]

"""Compares the files of a prepared dataset with their SHA-256, before training or beside it.

A dataset may have tens of gigabytes on a disk over the network. So a thread reads it, with a pause
after each block that is as long as the reading took, and files that were compared are remembered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from cramjax.data.manifest import REPAIR
from cramjax.errors import RunFailed, UserError
from cramjax.files import member, read_json, write_json

_LOG = logging.getLogger("cramjax")
_BLOCK_BYTES = 1 << 22
_JOIN_S = 2.0
_REMEMBERED = ".verified.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    """A file and its digest; `dtype` is that of the tokens in it, or None if it holds none."""

    name: str
    sha256: str
    dtype: np.dtype | None


class Verification:
    """One comparison of a dataset's files with its manifest; a context that ends it.

    Attributes:
        is_running: True while a thread compares.
    """

    def __init__(self, directory: pathlib.Path, manifest: dict[str, Any]):
        """Compare nothing yet.

        Args:
            directory: The dataset.
            manifest: Its manifest, which is sound.
        """
        self.is_running = False
        self._directory = directory
        self._vocab_size = manifest["vocab_size"]
        self._files = list(_listed(manifest))
        self._n_compared = 0
        self._damage: RunFailed | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_damaged(self) -> bool:
        """True once a damaged file has been found."""
        return self._damage is not None

    def start(self, when: str) -> Self:
        """Compare as `data.verify` says: "at_once", or in the "background"."""
        if when == "at_once":
            self.at_once()
            return self
        return self.begin()

    def at_once(self) -> None:
        """Compare everything now, whatever was compared before.

        Raises:
            RunFailed: names the first file that is damaged.
            UserError: if a file cannot be read.
        """
        try:
            for file in self._files:
                self._compare(member(self._directory, file.name, REPAIR), file, lambda _: None)
        except OSError as error:
            raise UserError(f"{error.filename or self._directory}: {error.strerror}") from error

    def begin(self) -> Self:
        """Compare in a thread that leaves the disk to others half of the time.

        `raise_damage` tells the result; `close` ends the thread.
        """
        self.is_running = True
        self._thread = threading.Thread(
            target=self._compare_gently, name="cramjax-verification", daemon=True
        )
        self._thread.start()
        return self

    def raise_damage(self) -> None:
        """Do nothing, unless a damaged file has been found.

        Raises:
            RunFailed: names the file.
        """
        if self._damage is not None:
            raise self._damage

    def close(self) -> None:
        """End the thread; a second call does nothing."""
        if self._thread is None:
            return
        self._stopping.set()
        # Not for ever: a disk over the network may hang.
        self._thread.join(_JOIN_S)
        self._thread = None
        if self._n_compared < len(self._files) and self._damage is None:
            _LOG.warning(
                "%s: %d of its %d files were compared with their SHA-256 before the run ended",
                self._directory,
                self._n_compared,
                len(self._files),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compare_gently(self) -> None:
        try:
            self._compare_changed()
        except RunFailed as error:
            self._damage = error
        except (OSError, UserError) as error:
            # A file that went away is mapped still. This must not end a run.
            _LOG.warning("%s: not all files could be compared (%s)", self._directory, error)
        finally:
            self.is_running = False

    def _compare_changed(self) -> None:
        """Compare the files that changed since they were compared, and remember them."""
        remembered = self._remembered()
        for file in self._files:
            path = member(self._directory, file.name, REPAIR)
            identity = _identity(path)
            if remembered.get(file.name) != [*identity, file.sha256]:
                self._compare(path, file, self._stopping.wait)
                if self._stopping.is_set():
                    return
                remembered[file.name] = [*identity, file.sha256]
                # A dataset may be read-only: then it is compared again next time.
                with contextlib.suppress(OSError, UserError):
                    write_json(self._directory / _REMEMBERED, remembered)
            self._n_compared += 1

    def _compare(self, path: pathlib.Path, file: _File, pause: Callable[[float], object]) -> None:
        """Compare one file; `pause` is called with the seconds that each block took.

        Returns early if the thread is to end.
        """
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while not self._stopping.is_set():
                started_s = time.perf_counter()
                block = stream.read(_BLOCK_BYTES)
                if not block:
                    break
                digest.update(block)
                if file.dtype is not None:
                    n_whole = len(block) // file.dtype.itemsize
                    self._check_ids(path, np.frombuffer(block, file.dtype, n_whole))
                pause(time.perf_counter() - started_s)

        if not self._stopping.is_set() and digest.hexdigest() != file.sha256:
            raise RunFailed(
                f"{path} is damaged (its SHA-256 is not the manifest's), and nothing more is "
                f"trained on it or saved: {REPAIR}."
            )

    def _check_ids(self, path: pathlib.Path, tokens: np.ndarray) -> None:
        if tokens.size and tokens.max() >= self._vocab_size:
            raise RunFailed(
                f"{path} is damaged (it holds the id {tokens.max()} of {self._vocab_size}), and "
                f"nothing more is trained on it or saved: {REPAIR}."
            )

    def _remembered(self) -> dict[str, Any]:
        """Returns file → identity and digest of what was compared before, {} if that is unknown."""
        try:
            return read_json(member(self._directory, _REMEMBERED, REPAIR), "it is written again")
        except UserError:
            return {}


def _listed(manifest: dict[str, Any]) -> Iterator[_File]:
    """Yield the files whose digest the manifest has, the shards last: they are long."""
    for name, sha256 in manifest.get("files", {}).items():
        yield _File(name=name, sha256=sha256, dtype=None)
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    for entry in manifest["shards"]:
        yield _File(name=entry["file"], sha256=entry["sha256"], dtype=dtype)


def _identity(path: pathlib.Path) -> list[int]:
    """Returns numbers that change when anybody writes to the file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]

"""Digests of files' contents: what tells that two files are the same, wherever they lie.

A digest is remembered with the file's place, size and time, so that a second start reads nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from cramjax.errors import RunFailed, UserError
from cramjax.files import read_json, write_json

_LOG = logging.getLogger("cramjax")
WHOLE_BYTES = 64 << 30
"""A corpus up to this size is digested whole, a larger one in evenly spread blocks of that sum."""

BLOCK_BYTES = 1 << 20
"""Size of the blocks."""

_THREADS = 8
_SAID_S = 1.0
_SAID_AGAIN_S = 30.0
# A file that was written this recently may be written again within the same tick of its clock.
_SETTLED_S = 2.0


Check = Callable[[str], Any]
"""Called with the path of a file that is read; raises a UserError if it cannot be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """A file as it lies on the disk.

    Attributes:
        path: Its real path.
        n_bytes: Its size.
        changed_ns: When it was changed, in ns.
        inode: Its number on the disk.
        stride: One block in so many is read.
    """

    path: str
    n_bytes: int
    changed_ns: int
    inode: int
    stride: int

    def facts(self) -> str:
        """Return what changes with the content, in a form to be remembered."""
        return f"{self.n_bytes}:{self.changed_ns}:{self.inode}:{self.stride}:"


def digests(paths: Sequence[pathlib.Path], what: str, cache_dir: str, check: Check) -> list[str]:
    """Return a digest of the content of each file.

    Args:
        paths: The files.
        what: Their name as a whole, for the line that says that this takes a while.
        cache_dir: Folder with the file that remembers digests.
        check: Called once for each file whose digest is not remembered.

    Raises:
        UserError: what `check` raises.
        OSError: if a file cannot be read.
    """
    n_bytes = sum(path.stat().st_size for path in paths)
    stride = 1
    while n_bytes > WHOLE_BYTES * stride:
        stride *= 2
    places = [_place(path, stride) for path in paths]

    memory = pathlib.Path(cache_dir).expanduser() / "digests.json"
    known = _remembered(memory)
    found = {}
    new = {}
    for place, path in zip(places, paths, strict=True):
        facts, _, digest = known.get(place.path, "").rpartition(":")
        if f"{facts}:" == place.facts():
            found[place] = digest
        else:
            new[place] = str(path)
    if new:
        computed = _computed(new, what, check)
        _remember(memory, known, computed)
        found |= computed
    return [found[place] for place in places]


def _place(path: pathlib.Path, stride: int) -> _Place:
    stat = path.stat()
    return _Place(
        path=os.path.realpath(path),
        n_bytes=stat.st_size,
        changed_ns=stat.st_mtime_ns,
        inode=stat.st_ino,
        stride=stride,
    )


def _computed(new: Mapping[_Place, str], what: str, check: Check) -> dict[_Place, str]:
    """Read files, given with the names that the user knows them by; says so if it takes long."""

    def read(place: _Place) -> str:
        check(new[place])
        return _digest(place)

    n_bytes = sum(place.n_bytes // place.stride for place in new)
    threads = ThreadPoolExecutor(_THREADS)
    try:
        futures = {place: threads.submit(read, place) for place in new}
        pause_s = _SAID_S
        while (left := wait(futures.values(), pause_s, FIRST_EXCEPTION).not_done) and not any(
            future.done() and future.exception() for future in futures.values()
        ):
            n_left = sum(place.n_bytes for place, future in futures.items() if future in left)
            _LOG.warning(
                "%s: reading %d files (%.1f GB) to tell if they are new, once; %d (%.1f GB) are "
                "left",
                what,
                len(new),
                n_bytes / 1e9,
                len(left),
                n_left / 1e9,
            )
            pause_s = _SAID_AGAIN_S
        return {place: future.result() for place, future in futures.items()}
    finally:
        threads.shutdown(cancel_futures=True)


def _digest(place: _Place) -> str:
    """Return the SHA-256 of a file's size and blocks, shortened to 32 hexadecimal digits."""
    digest = hashlib.sha256(f"{place.n_bytes}:{place.stride}\n".encode())
    with open(place.path, "rb") as file:
        for start in range(0, place.n_bytes, BLOCK_BYTES * place.stride):
            file.seek(start)
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()[:32]


def _remembered(memory: pathlib.Path) -> dict[str, str]:
    """Return real path → facts and digest; nothing if the file is missing or damaged."""
    try:
        content = read_json(memory, "")
    except UserError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {path: entry for path, entry in content.items() if isinstance(entry, str)}


def _remember(memory: pathlib.Path, known: dict[str, str], found: dict[_Place, str]) -> None:
    """Write digests down, if that can be done; without them the next start reads again."""
    latest_ns = time.time_ns() - int(_SETTLED_S * 1e9)
    settled = {
        place.path: place.facts() + digest
        for place, digest in found.items()
        if place.changed_ns < latest_ns
    }
    if not settled:
        return
    with contextlib.suppress(OSError, UserError, RunFailed):
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_json(memory, known | settled)

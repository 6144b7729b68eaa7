"""Lists local text files as parts; `formats.py` reads them."""

from __future__ import annotations

import collections
import dataclasses
import glob
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from cramjax.data.formats import FORMATS, file_format, read_file, real_compression
from cramjax.data.source import Drop, Part
from cramjax.errors import UserError

_LOG = logging.getLogger("cramjax")
RANGE_BYTES = 64 << 20
"""Plain files are read in ranges of this size, by as many processes as there are cores."""

# A pointer of Git LFS has three short lines.
_MAX_POINTER_BYTES = 1024
# Formats that can be read in ranges, because a line shows where a document begins.
_RANGED_FORMATS = (".txt", ".jsonl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilePart(Part):
    """The documents that start in a range of a file.

    Attributes:
        path: The file.
        start: First byte of the range.
        end: End of the range (exclusive), or None for the end of the file.
    """

    path: str
    start: int = 0
    end: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFiles:
    """The files that `pattern` names.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        index: Index of this source in the mixture.
        pattern: A path, a folder or a glob.
        field: Field of a record that holds its text.
        revision: None: the parts' keys hold each file's size and time.
    """

    spec: str
    weight: float
    index: int
    pattern: str
    field: str
    revision: str | None = None

    def parts(self) -> list[FilePart]:
        """List the files in the order of their names, large plain ones in ranges.

        Raises:
            UserError: if there is no file, or one of an unknown format.
        """
        parts = []
        for path in find_files(self.pattern):
            parts += self._ranges(path)
        return parts

    def read(self, part: FilePart, drop: Drop) -> Iterator[str]:
        """See `TextSource.read`."""
        return read_file(part.path, self.field, drop, part.start, part.end)

    def _ranges(self, path: pathlib.Path) -> Iterator[FilePart]:
        stat = path.stat()
        key = f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"
        common: dict[str, Any] = {"source": self.index, "path": str(path)}

        # Looked into only where that decides something: there may be a hundred thousand files.
        is_long = stat.st_size > RANGE_BYTES
        compression = file_format(path)[1]
        if is_long or stat.st_size < _MAX_POINTER_BYTES:
            compression = real_compression(path)
        has_ranges = is_long and file_format(path)[0] in _RANGED_FORMATS and compression is None
        if not has_ranges:
            yield FilePart(**common, name=str(path), key=key, n_bytes=stat.st_size)
            return

        for start in range(0, stat.st_size, RANGE_BYTES):
            end = min(start + RANGE_BYTES, stat.st_size)
            yield FilePart(
                **common,
                name=f"{path}@{start}",
                key=f"{key}:{start}",
                n_bytes=end - start,
                start=start,
                end=end,
            )


def find_files(pattern: str) -> list[pathlib.Path]:
    """Find the files of a path, a folder or a glob, sorted by name.

    Raises:
        UserError: if there is none, or one is unreadable or of an unknown format.
    """
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        paths = _inside(pathlib.Path(expanded))
    elif os.path.isfile(expanded):
        # Before the glob: a file's name may itself hold brackets.
        paths = [pathlib.Path(expanded)]
    else:
        names = glob.glob(expanded, recursive=True)
        paths = sorted(pathlib.Path(name) for name in names if os.path.isfile(name))

    if not paths:
        raise UserError(
            f"text:{pattern}: no such file; give a path, a folder or a glob of "
            f"{', '.join(FORMATS)} files"
        )
    for path in paths:
        if file_format(path)[0] not in FORMATS:
            raise UserError(
                f"{path}: not a text format; {', '.join(FORMATS)} can be read, each also as .gz "
                "or .zst"
            )
        if not os.access(path, os.R_OK):
            raise UserError(f"{path}: cannot be read; check its permissions")
    return paths


def _inside(folder: pathlib.Path) -> list[pathlib.Path]:
    """Find the text files below a folder, sorted; links to folders are followed, each once.

    Hidden files and folders are left out and said: they are copies of editors and systems.
    """
    found = []
    hidden = []
    # Real folders come first, so that a folder that is also linked goes by its own name.
    waiting = collections.deque([folder])
    linked: collections.deque[pathlib.Path] = collections.deque()
    seen = {os.path.realpath(parent) for parent in pathlib.Path(os.path.realpath(folder)).parents}
    while waiting or linked:
        current = waiting.popleft() if waiting else linked.popleft()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)

        for path in sorted(current.iterdir()):
            is_text = path.is_file() and file_format(path)[0] in FORMATS
            if path.name.startswith("."):
                hidden += [path] if is_text or path.is_dir() else []
            elif path.is_dir():
                (linked if path.is_symlink() else waiting).append(path)
            elif is_text:
                found.append(path)

    if hidden:
        _LOG.warning(
            "text:%s: left out %d hidden files and folders, such as %s",
            folder,
            len(hidden),
            min(hidden),
        )
    return sorted(found)

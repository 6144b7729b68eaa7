"""Lists local text files as parts; `formats.py` reads them."""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from cramjax.data.formats import FORMATS, file_format, read_file
from cramjax.data.source import Drop, Part
from cramjax.errors import UserError

RANGE_BYTES = 64 << 20
"""Plain files are read in ranges of this size, by as many processes as there are cores."""

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

        suffix, compression = file_format(path)
        has_ranges = suffix in _RANGED_FORMATS and compression is None
        if not has_ranges or stat.st_size <= RANGE_BYTES:
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
        # A folder may hold other files too.
        inside = sorted(path for path in pathlib.Path(expanded).rglob("*") if path.is_file())
        paths = [path for path in inside if file_format(path)[0] in FORMATS]
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

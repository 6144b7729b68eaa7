"""Lists local text files as parts; `formats.py` reads them."""

from __future__ import annotations

import collections
import dataclasses
import glob
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from cramjax.config.keep import Keep
from cramjax.data.contents import digests
from cramjax.data.first_bytes import COMPRESSIONS, FORMATS, file_format, look_at
from cramjax.data.formats import read_file
from cramjax.data.source import Drop, Part
from cramjax.errors import UserError

_LOG = logging.getLogger("cramjax")
RANGE_BYTES = 64 << 20
"""Plain files are read in ranges of this size, by as many processes as there are cores."""


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
        cache_dir: Folder in which digests of files are remembered.
        keep: Which records are kept, or None for all.
        revision: None: the parts' keys hold digests of the files.
    """

    spec: str
    weight: float
    index: int
    pattern: str
    field: str
    cache_dir: str
    keep: Keep | None = None
    revision: str | None = None

    def parts(self) -> list[FilePart]:
        """List the files in the order of their names, large plain ones in ranges.

        Files that were not read before are read once, for the digests of their contents.

        Raises:
            UserError: if there is no file, or one of an unknown format, or one that is no text.
        """
        paths = find_files(self.pattern)
        for path in paths:
            if self.keep is not None and file_format(path) == ".txt":
                raise UserError(
                    f"{path}: has no fields to compare with data.keep={self.keep.expression!r}; "
                    "leave data.keep out, or give records (.jsonl, .parquet)"
                )
        # What is no text is refused at the start, not after hours of reading.
        keys = digests(paths, self.spec, self.cache_dir, look_at)
        return file_parts(paths, keys, self.pattern, self.index, _has_ranges)

    def read(self, part: FilePart, drop: Drop) -> Iterator[str]:
        """See `TextSource.read`."""
        return read_file(part.path, self.field, drop, part.start, part.end, keep=self.keep)


def file_parts(
    paths: Sequence[pathlib.Path],
    keys: Sequence[str],
    pattern: str,
    source: int,
    has_ranges: Callable[[str], bool],
) -> list[FilePart]:
    """Return the parts of the files that `pattern` names, large ones in ranges.

    Args:
        paths: The files.
        keys: Digests of their contents.
        pattern: A path, a folder or a glob.
        source: Index of the source.
        has_ranges: See `ranges`.
    """
    folder = named_folder(pattern)
    parts = []
    for path, key in zip(paths, keys, strict=True):
        name = path.relative_to(folder).as_posix()
        parts += ranges(path, source, name, f"{name}:{key}", has_ranges)
    return parts


def ranges(
    path: pathlib.Path, source: int, name: str, key: str, has_ranges: Callable[[str], bool]
) -> Iterator[FilePart]:
    """Yield a file as one part, or a large one in ranges if it can be read so.

    Args:
        path: The file.
        source: Index of the source.
        name: Name of the part.
        key: Its key.
        has_ranges: Called with the path of a large file: whether it can be read in ranges.
    """
    n_bytes = path.stat().st_size
    # Looked into only where that decides something: there may be a hundred thousand files.
    if n_bytes <= RANGE_BYTES or not has_ranges(str(path)):
        yield FilePart(source=source, path=str(path), name=name, key=key, n_bytes=n_bytes)
        return

    for start in range(0, n_bytes, RANGE_BYTES):
        end = min(start + RANGE_BYTES, n_bytes)
        yield FilePart(
            source=source,
            path=str(path),
            name=f"{name}@{start}",
            key=f"{key}:{start}",
            n_bytes=end - start,
            start=start,
            end=end,
        )


def _has_ranges(path: str) -> bool:
    return look_at(path).has_ranges


def named_folder(pattern: str) -> pathlib.Path:
    """Return the folder within which files have names: the last one before any wildcard."""
    path = pathlib.Path(os.path.expanduser(pattern))
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    while glob.has_magic(str(path)):
        path = path.parent
    return path


def find_files(pattern: str) -> list[pathlib.Path]:
    """Find the files of a path, a folder or a glob, sorted by name.

    Raises:
        UserError: if there is none, or one is unreadable or of an unknown format.
    """
    expanded = os.path.expanduser(pattern)
    names: list[str] = []
    if os.path.isdir(expanded):
        paths = _inside(pathlib.Path(expanded))
    elif os.path.isfile(expanded):
        # Before the glob: a file's name may itself hold brackets.
        paths = [pathlib.Path(expanded)]
    else:
        names = glob.glob(expanded, recursive=True)
        paths = sorted(pathlib.Path(name) for name in names if os.path.isfile(name))

    if not paths:
        problem = "no such file; give a path, a folder or a glob"
        if os.path.isdir(expanded):
            problem = "the folder holds none; give another folder, or convert its files"
        elif names:
            problem = "matches folders only; name one of them, or end the glob with /**/*"
        raise UserError(f"text:{pattern}: {problem} ({', '.join(FORMATS)} are read)")
    for path in paths:
        if file_format(path) not in FORMATS:
            raise UserError(
                f"{path}: not a text format; {', '.join(FORMATS)} can be read, each also as "
                f"{', '.join(COMPRESSIONS)}"
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
            is_text = path.is_file() and file_format(path) in FORMATS
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

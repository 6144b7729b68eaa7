"""Lists files of pairs as parts: two parallel files, or files whose records hold both sides."""

from __future__ import annotations

import collections
import dataclasses
import glob
import itertools
import operator
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from cramjax.config.keep import Keep
from cramjax.config.views import DataConfig
from cramjax.data import installed_docs
from cramjax.data.contents import digests
from cramjax.data.first_bytes import COMPRESSIONS, FileKind, file_format, look_at
from cramjax.data.installed_docs import DocsPart, InstalledDocs
from cramjax.data.pair_records import FORMATS, read_pairs
from cramjax.data.pair_text import PairForm
from cramjax.data.plain_text import LineReader, decode
from cramjax.data.source import Drop, Part, TextSource
from cramjax.data.text_source import FilePart, file_parts
from cramjax.errors import UserError

DOCSTRINGS = "installed-docs"
"""The address of pairs that every machine has: paragraphs of docstrings, and their summaries."""

_FIELDS = ("source", "target")
# A first line that is a sentence, and the paragraph after it.
_SUMMARY = re.compile(r"(?P<summary>[^\n]{12,160}[.!])\n\s*\n(?P<rest>\S(?:[^\n]|\n(?!\s*\n))+)")


def form_of(config: DataConfig, prefix: str | None = None) -> PairForm:
    """Return the form of the pairs that the section `data` describes.

    Args:
        config: The section.
        prefix: What comes before the sources of one source of a mixture; None for
            `data.source_prefix`.
    """
    if prefix is None:
        prefix = config.source_prefix
    source, target = _FIELDS
    if config.source_field is not None and config.target_field is not None:
        source, target = config.source_field, config.target_field
    return PairForm(source_field=source, target_field=target, prefix=prefix)


def open_pairs(
    *,
    spec: str,
    weight: float,
    index: int,
    address: str,
    form: PairForm,
    cache_dir: str,
    keep: Keep | None = None,
) -> TextSource:
    """Open a source `pairs:…`.

    Args:
        spec: The specification in `data.source`.
        weight: Share of the mixture.
        index: Index of this source in the mixture.
        address: "SOURCE_FILE,TARGET_FILE", a file, a glob of files, or `DOCSTRINGS`.
        form: Fields of records, and what comes before each source.
        cache_dir: Folder in which digests of files are remembered.
        keep: Which records are kept, or None for all.

    Raises:
        UserError: if there is no such file, or one of an unknown format.
    """
    common: dict[str, Any] = {"spec": spec, "weight": weight, "form": form}
    named = {"index": index, "cache_dir": cache_dir}
    if address == DOCSTRINGS:
        refuse_keep(spec, keep)
        docs = InstalledDocs(spec=spec, weight=weight, index=index)
        return DocstringPairs(**common, docs=docs, revision=docs.revision)

    if "," in address and not os.path.exists(os.path.expanduser(address)):
        refuse_keep(spec, keep)
        files = tuple(os.path.expanduser(name) for name in address.split(","))
        if len(files) != 2:
            raise UserError(
                f"data.source={spec}: names {len(files)} files; parallel files are two, "
                "pairs:SOURCE_FILE,TARGET_FILE"
            )
        for file in files:
            _check_file(file, spec)
        return ParallelFiles(**common, **named, files=(files[0], files[1]))
    return PairFiles(**common, **named, pattern=address, keep=keep)


def refuse_keep(spec: str, keep: Keep | None) -> None:
    """Raise a UserError if records are to be chosen in a source that has none."""
    if keep is not None:
        raise UserError(
            f"data.source={spec}: has no fields to compare with data.keep={keep.expression!r}; "
            "leave data.keep out, or give records (.jsonl, .parquet)"
        )


def _check_file(path: str, spec: str) -> None:
    if os.path.isdir(path):
        raise UserError(f"data.source={spec}: {path} is a folder; name two files of lines")
    if not os.path.isfile(path):
        raise UserError(f"data.source={spec}: {path}: no such file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read; check its permissions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelPart(Part):
    """All lines of two parallel files."""

    files: tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelFiles:
    """Two files of lines: line n of the first is the source of line n of the second.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        index: Index of this source in the mixture.
        form: What comes before each source.
        files: Both files.
        cache_dir: Folder in which digests of files are remembered.
        revision: None: the part's key holds digests of the files.
    """

    spec: str
    weight: float
    index: int
    form: PairForm
    files: tuple[str, str]
    cache_dir: str
    revision: str | None = None

    def parts(self) -> list[ParallelPart]:
        """Make both files one part: a line has its number only if all before it are counted."""
        paths = [pathlib.Path(file) for file in self.files]
        keys = digests(paths, self.spec, self.cache_dir, look_at)
        part = ParallelPart(
            source=self.index,
            name="+".join(path.name for path in paths),
            key="+".join(keys),
            n_bytes=sum(path.stat().st_size for path in paths),
            files=self.files,
        )
        return [part]

    def read(self, part: ParallelPart, drop: Drop) -> Iterator[str]:
        """Yield a document for each line.

        Raises:
            UserError: if the files have other numbers of lines.
        """
        counts = [0, 0]
        sides = [
            _numbered(path, look_at(path), number, counts, drop)
            for number, path in enumerate(part.files)
        ]
        for (where, source), (_, target) in zip(*sides, strict=False):
            if source is None or target is None:
                drop("line_too_long", where)
                continue
            document = self.form.joined(source, target, where, drop)
            if document is not None:
                yield document

        # The longer file is read to its end, to say how long it is.
        for side in sides:
            collections.deque(side, maxlen=0)
        if counts[0] != counts[1]:
            shorter = int(counts[1] < counts[0])
            raise UserError(
                f"{part.files[shorter]}: ends after line {counts[shorter]:,}, and "
                f"{part.files[1 - shorter]} has {counts[1 - shorter]:,} lines; line by line they "
                "must be pairs"
            )


def _numbered(
    path: str, kind: FileKind, number: int, counts: list[int], drop: Drop
) -> Iterator[tuple[str, str | None]]:
    """Yield the place and the text of each line, None for one that is far too long.

    `counts[number]` is the number of lines so far.
    """
    lines = LineReader(path, kind, drop, in_pieces=True)
    # A long line comes in pieces, which have its place.
    for _, pieces in itertools.groupby(lines, operator.itemgetter(0)):
        whole: bytes | bytearray | None = None
        for n_pieces, (_, line) in enumerate(pieces, start=1):
            whole = line if n_pieces == 1 else None
        counts[number] += 1
        where = f"{path}:{counts[number]}"
        yield where, None if whole is None else decode(whole, where, drop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairFiles:
    """Files whose records hold both sides: two columns of .tsv, fields of .jsonl or .parquet.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        index: Index of this source in the mixture.
        form: The fields, and what comes before each source.
        pattern: A path or a glob.
        cache_dir: Folder in which digests of files are remembered.
        keep: Which records are kept, or None for all.
        revision: None: the parts' keys hold digests of the files.
    """

    spec: str
    weight: float
    index: int
    form: PairForm
    pattern: str
    cache_dir: str
    keep: Keep | None = None
    revision: str | None = None

    def parts(self) -> list[FilePart]:
        """List the files in the order of their names, large plain ones in ranges.

        Raises:
            UserError: if there is no file, or one of an unknown format, or one that is no text.
        """
        paths = self._files()
        if self.keep is not None and any(file_format(path) == ".tsv" for path in paths):
            refuse_keep(self.spec, self.keep)
        keys = digests(paths, self.spec, self.cache_dir, look_at)
        return file_parts(paths, keys, self.pattern, self.index, _has_ranges)

    def read(self, part: FilePart, drop: Drop) -> Iterator[str]:
        """See `TextSource.read`."""
        return read_pairs(part.path, self.form, drop, part.start, part.end, keep=self.keep)

    def _files(self) -> list[pathlib.Path]:
        expanded = os.path.expanduser(self.pattern)
        names = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded))
        paths = [pathlib.Path(name) for name in names]
        if not paths:
            raise UserError(f"data.source={self.spec}: no such file; give a file or a glob")
        for path in paths:
            if path.is_dir():
                raise UserError(
                    f"data.source={self.spec}: {path} is a folder; name files, as in "
                    f"pairs:{path}/*.jsonl"
                )
            if file_format(path) not in FORMATS:
                raise UserError(
                    f"{path}: not a format of pairs; {', '.join(FORMATS)} can be read, each also "
                    f"as {', '.join(COMPRESSIONS)}, and two parallel files as "
                    "pairs:SOURCE_FILE,TARGET_FILE"
                )
            _check_file(str(path), self.spec)
        return paths


def _has_ranges(path: str) -> bool:
    kind = look_at(path)
    is_plain = kind.compression is None and kind.encoding == "utf-8"
    return is_plain and file_format(path) != ".parquet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocstringPairs:
    """The docstrings of installed packages: a paragraph, and the line before it, which sums it up.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        form: What comes before each source.
        docs: Lists the files.
        revision: Stands for the versions of Python and the packages.
    """

    spec: str
    weight: float
    form: PairForm
    docs: InstalledDocs
    revision: str | None

    def parts(self) -> list[DocsPart]:
        """See `InstalledDocs.parts`."""
        return self.docs.parts()

    def read(self, part: DocsPart, drop: Drop) -> Iterator[str]:
        """Yield a document for each docstring whose first line is a sentence."""
        for path in part.paths:
            if not path.endswith(".py"):
                continue
            try:
                content = pathlib.Path(path).read_text(encoding="utf-8", errors="ignore")
            except OSError:
                drop("unreadable_file", path)
                continue
            for text in installed_docs.docstrings(content):
                match = _SUMMARY.match(text)
                if match:
                    document = self.form.joined(match["rest"], match["summary"], path, drop)
                    if document is not None:
                        yield document

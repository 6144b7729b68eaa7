"""Prose that is already on the machine: docstrings and documentation of the Python standard library and the installed packages.

Nothing is imported or executed, files are read as text. It is there so that a first run needs neither network nor corpus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterator

from cramjax.data.source import Drop, Part

MIN_CHARS = 200
MAX_FILE_BYTES = 1 << 20
# Groups of files: many enough that an early stop has seen a fair sample, few enough that starting each costs nothing.
N_PARTS = 96
_SKIPPED_FOLDERS = {
    "__pycache__", "tests", "test", "testing", "node_modules", "include", "licenses", "cramjax", ".git",
}  # fmt: skip
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_PROSE_SUFFIXES = {".rst", ".md", ".txt"}
_NOT_PROSE = re.compile(
    r"(?i)(requirements|licen[cs]e|copying|notice|authors|contributors|record|top_level|entry_points|sources|cmakelists|"
    r"vocab|words|names|installed-files|third.?party|changelog|changes|history|news)"
)
# A string with three quotes as the first statement of a block (the line before ends in a colon) or of the file.
_DOCSTRING = re.compile(
    r"(?:\A(?:[ \t]*(?:#[^\n]*)?\n)*|:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*\n)*)"
    r'(?P<indent>[ \t]*)[rRuU]?(?P<quotes>"""|\'\'\')(?P<text>.*?)(?P=quotes)',
    re.DOTALL,
)
_PROMPT = re.compile(r"^\s*(>>>|\.\.\. |\$ )")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocsPart(Part):
    """A group of files."""

    paths: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstalledDocs:
    """The documentation of this interpreter's standard library and site-packages; `revision` names their versions."""

    spec: str
    weight: float
    index: int
    revision: str | None = dataclasses.field(default_factory=lambda: _environment())

    def parts(self) -> list[DocsPart]:
        """`N_PARTS` groups of files by the hash of their names, so that each is a fair sample of all."""
        groups: list[list[str]] = [[] for _ in range(N_PARTS)]
        sizes = [0] * N_PARTS
        for root in _roots():
            for path, size in _walk(root):
                digest = hashlib.blake2b(
                    os.path.relpath(path, root).encode("utf-8", "replace"), digest_size=4
                ).digest()
                group = int.from_bytes(digest) % N_PARTS
                groups[group].append(path)
                sizes[group] += size
        return [
            DocsPart(
                source=self.index,
                name=f"installed-docs-{number:03d}",
                key=f"{self.revision}-{number}",
                n_bytes=size,
                paths=tuple(sorted(paths)),
            )
            for number, (paths, size) in enumerate(zip(groups, sizes, strict=True))
            if paths
        ]

    def read(self, part: DocsPart, drop: Drop) -> Iterator[str]:
        """A document for each module (its docstrings) or file of documentation that holds prose."""
        for path in part.paths:
            try:
                content = pathlib.Path(path).read_text(encoding="utf-8", errors="ignore")
            except OSError:
                drop("unreadable_file", path)
                continue
            text = _docstrings(content) if path.endswith(".py") else _document(path, content)
            if len(text) >= MIN_CHARS:
                yield text


def _roots() -> list[str]:
    """The standard library and every folder of packages this interpreter imports from, each once."""
    paths = sysconfig.get_paths()
    packages = [path for path in sys.path if os.path.basename(path) in _PACKAGE_FOLDERS]
    candidates = sorted({paths["stdlib"], paths["purelib"], paths["platlib"], *packages})
    # One folder may go by two names (lib64), but what counts is the name: an environment's packages are where it is.
    return list(
        {os.path.realpath(path): path for path in candidates if os.path.isdir(path)}.values()
    )


def _environment() -> str:
    versions = sorted(
        {f"{dist.name}=={dist.version}" for dist in importlib.metadata.distributions()}
    )
    names = [sysconfig.get_python_version(), *versions]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _walk(root: str) -> Iterator[tuple[str, int]]:
    """Paths and sizes of the files below `root` that may hold prose."""
    try:
        with os.scandir(root) as entries:
            found = list(entries)
    except OSError:  # a folder of another user's
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            # The standard library holds site-packages, which is a root of its own.
            ours = entry.name.startswith("cramjax-")
            if (
                not ours
                and entry.name not in _SKIPPED_FOLDERS
                and entry.name not in _PACKAGE_FOLDERS
            ):
                yield from _walk(entry.path)
        elif _may_hold_prose(entry.name) and entry.is_file():
            size = entry.stat().st_size
            if MIN_CHARS <= size <= MAX_FILE_BYTES:
                yield entry.path, size


def _may_hold_prose(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    if suffix == ".py" or name == "METADATA":
        return True
    return suffix in _PROSE_SUFFIXES and not _NOT_PROSE.search(stem)


def _docstrings(code: str) -> str:
    """The long docstrings of a module, one after the other. Found by pattern: parsing is thirty times as slow."""
    texts = (
        textwrap.dedent(match["indent"] + match["text"]).strip()
        for match in _DOCSTRING.finditer(code)
    )
    return "\n\n".join(_without_prompts(text) for text in texts if len(text) >= MIN_CHARS)


def _document(path: str, content: str) -> str:
    if path.endswith("METADATA"):
        _, _, content = content.partition("\n\n")  # the description follows the headers
    text = _without_prompts(content)
    letters = sum(map(str.isalpha, text)) + text.count(" ")
    return text if letters >= 0.7 * max(1, len(text)) else ""


def _without_prompts(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not _PROMPT.match(line))

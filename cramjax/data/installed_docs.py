"""Reads prose that is already on the machine: documentation of Python and installed packages.

That is the docstrings and documentation files of the standard library and of site-packages. Files
are read as text; nothing is imported or executed. So a first run needs neither network nor corpus.
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
# Groups of files: many enough that an early stop has seen a fair sample, few enough that starting
# each of them costs nothing.
N_PARTS = 96
# The share of letters and spaces below which a file is a table or code rather than prose.
_MIN_LETTERS = 0.7
_SKIPPED_FOLDERS = {
    "__pycache__", "tests", "test", "testing", "node_modules", "include", "licenses", "cramjax",
    ".git",
}  # fmt: skip
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_PROSE_SUFFIXES = {".rst", ".md", ".txt"}
_NOT_PROSE = re.compile(
    r"(?i)(requirements|licen[cs]e|copying|notice|authors|contributors|record|top_level|"
    r"entry_points|sources|cmakelists|vocab|words|names|installed-files|third.?party|changelog|"
    r"changes|history|news)"
)
# A string with three quotes as the first statement of a block (the line before ends in a colon) or
# of the file.
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


def _environment() -> str:
    """Hash the versions of Python and of every installed package."""
    versions = {f"{dist.name}=={dist.version}" for dist in importlib.metadata.distributions()}
    names = [sysconfig.get_python_version(), *sorted(versions)]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstalledDocs:
    """The documentation of this interpreter's standard library and packages.

    Attributes:
        spec: See `TextSource`.
        weight: See `TextSource`.
        index: Index of this source in the mixture.
        revision: Stands for the versions of Python and the packages.
    """

    spec: str
    weight: float
    index: int
    revision: str | None = dataclasses.field(default_factory=_environment)

    def parts(self) -> list[DocsPart]:
        """Group the files by a hash of their names, so that each group is a fair sample of all."""
        groups: list[list[str]] = [[] for _ in range(N_PARTS)]
        sizes = [0] * N_PARTS
        for root in _roots():
            for path, n_bytes in walk(root):
                name = os.path.relpath(path, root).encode("utf-8", "replace")
                group = int.from_bytes(hashlib.blake2b(name, digest_size=4).digest()) % N_PARTS
                groups[group].append(path)
                sizes[group] += n_bytes

        parts = []
        for number, (paths, n_bytes) in enumerate(zip(groups, sizes, strict=True)):
            if paths:
                part = DocsPart(
                    source=self.index,
                    name=f"installed-docs-{number:03d}",
                    key=f"{self.revision}-{number}",
                    n_bytes=n_bytes,
                    paths=tuple(sorted(paths)),
                )
                parts.append(part)
        return parts

    def read(self, part: DocsPart, drop: Drop) -> Iterator[str]:
        """Yield a document for each module (its docstrings) or file that holds prose."""
        for path in part.paths:
            try:
                content = pathlib.Path(path).read_text(encoding="utf-8", errors="ignore")
            except OSError:
                drop("unreadable_file", path)
                continue
            text = docstrings_of(content) if path.endswith(".py") else prose_of(path, content)
            if len(text) >= MIN_CHARS:
                yield text


def _roots() -> list[str]:
    """List the standard library and every folder of packages that is imported from, each once."""
    paths = sysconfig.get_paths()
    packages = [path for path in sys.path if os.path.basename(path) in _PACKAGE_FOLDERS]
    candidates = sorted({paths["stdlib"], paths["purelib"], paths["platlib"], *packages})

    # One folder may go by two names (lib64). The name is kept, not the real path: an environment's
    # packages are where it says.
    by_real_path = {os.path.realpath(path): path for path in candidates if os.path.isdir(path)}
    return list(by_real_path.values())


def walk(root: str) -> Iterator[tuple[str, int]]:
    """Yield path and size in bytes of each file below `root` that may hold prose."""
    try:
        with os.scandir(root) as scan:
            entries = list(scan)
    except OSError:  # a folder of another user
        return

    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if not _is_skipped(entry.name):
                yield from walk(entry.path)
        elif _may_hold_prose(entry.name) and entry.is_file():
            n_bytes = entry.stat().st_size
            if MIN_CHARS <= n_bytes <= MAX_FILE_BYTES:
                yield entry.path, n_bytes


def _is_skipped(folder: str) -> bool:
    # The standard library holds site-packages, which is a root of its own; this project's text is
    # left out, because it changes from commit to commit.
    return folder in _SKIPPED_FOLDERS or folder in _PACKAGE_FOLDERS or folder.startswith("cramjax-")


def _may_hold_prose(name: str) -> bool:
    stem, suffix = os.path.splitext(name)
    if suffix == ".py" or name == "METADATA":
        return True
    return suffix in _PROSE_SUFFIXES and not _NOT_PROSE.search(stem)


def docstrings_of(code: str) -> str:
    """Join the long docstrings of a module."""
    return "\n\n".join(docstrings(code))


def docstrings(code: str) -> list[str]:
    """Return the long docstrings, found by pattern: parsing is thirty times as slow."""
    texts = []
    for match in _DOCSTRING.finditer(code):
        text = textwrap.dedent(match["indent"] + match["text"]).strip()
        if len(text) >= MIN_CHARS:
            texts.append(_without_prompts(text))
    return texts


def prose_of(path: str, content: str) -> str:
    """Return the prose of a file, or nothing if it is mostly something else."""
    if path.endswith("METADATA"):
        _, _, content = content.partition("\n\n")  # the description follows the headers
    text = _without_prompts(content)
    n_letters = sum(map(str.isalpha, text)) + text.count(" ")
    return text if n_letters >= _MIN_LETTERS * max(1, len(text)) else ""


def _without_prompts(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not _PROMPT.match(line))

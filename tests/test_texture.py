"""The texture of code and text: columns, air in functions, openings of docstrings.

CONTRIBUTING.md describes the style.  These tests hold the parts of it that a program can count.
"""

from __future__ import annotations

import ast
import collections
import pathlib
import re
from collections.abc import Iterator

import pytest

MAX_COLUMNS = 100
MAX_FUNCTION_LINES = 60
# A function of 25 lines has a blank line outside its docstring, unless its body is one paragraph.
PARAGRAPHS_FROM = 25
MAX_PARAGRAPH = 9

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
OPENING = re.compile(r"(Of|As|What|How|Whether|Which|Where)\b")
URL = re.compile(r"https?://\S+")

# Rooms that are not clean yet: files, or folders with everything below them.
_PENDING: tuple[str, ...] = ()


def test_lines_have_at_most_100_columns(offences):
    assert not offences["columns"]


def test_long_functions_have_paragraphs(offences):
    assert not offences["paragraphs"]


def test_functions_fit_a_screen(offences):
    assert not offences["screen"]


def test_docstrings_open_with_what_the_thing_is_or_does(offences):
    assert not offences["opening"]


def test_arguments_of_calls_hold_no_conditional_expression(offences):
    assert not offences["conditional"]


def test_comprehensions_are_not_nested(offences):
    assert not offences["nested"]


@pytest.fixture(scope="module")
def offences(root: pathlib.Path) -> dict[str, list[str]]:
    """Rule → "file:line: message" of each place that breaks it; every file is parsed once."""
    places: dict[str, list[str]] = collections.defaultdict(list)
    for path in files(root):
        name = path.relative_to(root).as_posix()
        if not is_pending(name):
            for line, rule, message in offences_of(path):
                places[rule].append(f"{name}:{line}: {message}")
    return places


def files(root: pathlib.Path) -> Iterator[pathlib.Path]:
    for folder in ("cramjax", "tools", "configs", "tests"):
        yield from sorted((root / folder).rglob("*.py"))
    yield from sorted(root.glob("*.md"))
    yield from sorted((root / "docs").rglob("*.md"))


def is_pending(name: str) -> bool:
    return any(name == room or name.startswith(f"{room}/") for room in _PENDING)


def offences_of(path: pathlib.Path) -> Iterator[tuple[int, str, str]]:
    """Yields (line, rule, message) for each offence in one file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    is_markdown = path.suffix == ".md"
    for number, line in enumerate(lines, start=1):
        # Rows of a Markdown table and URLs cannot be broken.
        width = 0 if is_markdown and line.lstrip().startswith("|") else len(URL.sub("", line))
        if width > MAX_COLUMNS:
            yield number, "columns", f"{len(line)} columns"

    if is_markdown:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED):
            yield from _in_docstring(node)
        if isinstance(node, FUNCTIONS):
            yield from _in_function(node, lines)
        elif isinstance(node, ast.Call):
            yield from _in_call(node)
        elif isinstance(node, COMPREHENSIONS):
            yield from _in_comprehension(node)


def _in_docstring(node: ast.AST) -> Iterator[tuple[int, str, str]]:
    docstring = ast.get_docstring(node)
    if docstring and OPENING.match(docstring):
        yield node.body[0].lineno, "opening", f"opens with {docstring.split()[0]}"


def _in_function(node: ast.FunctionDef, lines: list[str]) -> Iterator[tuple[int, str, str]]:
    size = node.end_lineno - node.lineno + 1
    if size > MAX_FUNCTION_LINES:
        yield node.lineno, "screen", f"{node.name} has {size} lines"

    has_docstring = ast.get_docstring(node, clean=False) is not None
    start = node.body[0].end_lineno if has_docstring else node.lineno
    body = lines[start : node.end_lineno]
    is_one_paragraph = all(line.strip() for line in body)
    if is_one_paragraph and size >= PARAGRAPHS_FROM and len(body) > MAX_PARAGRAPH:
        yield node.lineno, "paragraphs", f"{node.name} has {size} lines and no blank line"


def _in_call(node: ast.Call) -> Iterator[tuple[int, str, str]]:
    for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
        if isinstance(argument, ast.IfExp):
            yield argument.lineno, "conditional", "conditional expression in an argument"


def _in_comprehension(node: ast.AST) -> Iterator[tuple[int, str, str]]:
    inner = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS)]
    if len(inner) > 1:
        yield node.lineno, "nested", "a comprehension in a comprehension"
    elif len(node.generators) > 2:
        yield node.lineno, "nested", f"a comprehension over {len(node.generators)} loops"

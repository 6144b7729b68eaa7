"""Reads the Markdown that studies write: headings, tables and paragraphs; nothing else.

Its pictures are left out: the page has charts of the same figures.
"""

from __future__ import annotations

import itertools
import re

from cramjax.reporting.blocks import Block, Cell, Note, Table

_PICTURE = re.compile(r"!\[.*\]\(.*\)\s*$")


def blocks(text: str) -> list[Block]:
    """Returns tables under their headings, and all other text as paragraphs."""
    result: list[Block] = []
    heading = ""
    groups = itertools.groupby(text.splitlines(), key=lambda line: line.lstrip().startswith("|"))
    for is_table, lines in groups:
        if is_table:
            result += _table(heading, list(lines))
            continue
        for line in lines:
            if line.startswith("#"):
                heading = line.lstrip("# ").strip()
            elif line.strip() and not _PICTURE.match(line):
                result.append(Note(text=line.strip().replace("`", "")))
    return result


def _table(title: str, lines: list[str]) -> list[Block]:
    rows = [_cells(line) for line in lines if set(line) - set("|-: ")]
    if not rows:
        return []
    head, *body = rows
    return [Table(title=title, columns=head, rows=[list(map(_cell, row)) for row in body])]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _cell(text: str) -> Cell:
    """Returns a cell; bold ones, the best of their column, are marked."""
    is_bold = text.startswith("**")
    return Cell(text=text.replace("**", "").replace("`", ""), mark=is_bold)

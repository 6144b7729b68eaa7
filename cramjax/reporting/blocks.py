"""The parts of a page as plain data: sections of tables, charts, sentences and commands.

The script of the page (`assets/page.js`) draws each of them, and writes every text as text. So a
name or a sentence with markup in it stays what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cramjax.reporting.words import is_number

Value = float | int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: as it is shown.
        value: the number behind the text, or None.
        mark: whether it differs from the other runs.
    """

    text: str
    value: Value = None
    mark: bool = False


def number(value: Any, form: str) -> Cell:
    """Returns the cell of a number, written as `form` says (",.1f"); a dash without one."""
    if not is_number(value):
        return Cell(text="–")
    return Cell(text=format(value, form), value=value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table; a row starts with its heading.

    Attributes:
        title: its caption.
        columns: headings; the first is that of the rows.
        rows: cells of each row.
        runs: the run of each column, for those that can be hidden; None for the others.
        row_runs: the run of each row, likewise; empty if rows are no runs.
        is_folded: whether it is shown only on request.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    runs: Sequence[int | None] = ()
    row_runs: Sequence[int | None] = ()
    is_folded: bool = False


def text_of(value: Any) -> str:
    """Returns a value as a cell shows it; nothing for None."""
    return "" if value is None else str(value)


def by_run(
    title: str, names: Sequence[str], rows: Sequence[Sequence[Cell]], *, is_folded: bool = False
) -> Table:
    """Returns a table with a column for each run of the page; rows start with their heading."""
    return Table(
        title=title,
        columns=["", *names],
        rows=rows,
        runs=[None, *range(len(names))],
        is_folded=is_folded,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a chart.

    Attributes:
        key: of the values in `Page.xs`.
        label: with the unit.
        is_log: whether it is logarithmic at first.
        units: as in `words.UNITS`; empty for numbers as they are.
        categories: the values of an axis of names; empty for numbers.
    """

    key: str = ""
    label: str
    is_log: bool = False
    units: Sequence[tuple[float, float, str]] = ()
    categories: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A curve of a chart.

    Attributes:
        name: in the tooltip.
        run: number of the run, or None.
        style: "solid", "faint", "points" or "level" (one value along the whole axis).
        x: place in `Page.xs`; None for a level.
        y: values; None leaves a gap.
        group: number of its colour among `Lines.groups`; None for the colour of the run.
    """

    name: str
    run: int | None
    style: str
    x: int | None
    y: Sequence[Value]
    group: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line in a chart, as where a network grew; `x` has a value for each axis."""

    name: str
    run: int
    x: Mapping[str, Value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines:
    """A chart of curves; the reader chooses among the axes `x`.

    `about` says it in words, and `groups` names the colours of series that are no runs' own. With
    `is_main` it is as wide as the page.
    """

    kind: ClassVar[str] = "lines"
    title: str
    about: str
    x: Sequence[Axis]
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    groups: Sequence[str] = ()
    is_main: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a scatter chart; `lines` is what it says when it is pointed at."""

    x: float | str
    y: float
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cloud:
    """Points of one kind.

    Attributes:
        name: in the legend and in the tooltip.
        points: in order.
        is_line: whether they are joined by steps, as a front.
        is_context: whether it is grey.
        is_dash: whether points are short lines, as for a mean.
        is_more: whether it has the colour and the sign of the cloud before it.
    """

    name: str
    points: Sequence[Point]
    is_line: bool = False
    is_context: bool = False
    is_dash: bool = False
    is_more: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scatter:
    """A chart of points.

    With `is_apart` the clouds stand beside each other at a name of the axis x. With `is_main` it is
    as wide as the page.
    """

    kind: ClassVar[str] = "scatter"
    title: str
    about: str
    x: Axis
    y: Axis
    clouds: Sequence[Cloud]
    is_apart: bool = False
    is_main: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal bars, each put together of parts.

    Attributes:
        names: of the bars.
        parts: name → values of all bars.
        limits: a line for each bar, such as the memory of a card; empty for none.
        runs: the run of each bar, so that it can be hidden; empty if bars are no runs.
        is_stacked: whether parts stand one behind the other.
    """

    kind: ClassVar[str] = "bars"
    title: str
    about: str
    label: str
    names: Sequence[str]
    parts: Mapping[str, Sequence[Value]]
    limits: Sequence[Value] = ()
    runs: Sequence[int] = ()
    is_stacked: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """Parallel coordinates: a line for each row through one value on each axis.

    The last axis gives the colour.
    """

    kind: ClassVar[str] = "parallel"
    title: str
    about: str
    axes: Sequence[Axis]
    names: Sequence[str]
    rows: Sequence[Sequence[Value | str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden:
    """A hidden piece of a sentence and the model's guess."""

    truth: str
    guess: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A sentence as a model read it at a step: texts and hidden pieces in order."""

    label: str
    pieces: Sequence[str | Hidden]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """Held-out text with the guesses of a run, a list of readings for each text."""

    kind: ClassVar[str] = "samples"
    title: str
    run: int
    texts: Sequence[Sequence[Reading]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code:
    """A command, to be copied."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


Block = Table | Lines | Scatter | Bars | Parallel | Samples | Note | Code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under a heading; `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]
    intro: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A run that the reader can hide; `note` says more than its name."""

    name: str
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page.

    Attributes:
        title: of the page.
        runs: those that can be hidden in all sections.
        sections: in their order.
        xs: x values of curves by the key of each axis; the curves of a run share them.
        problems: sentences on what could not be read.
        along: key of the axis along which curves go at first.
    """

    title: str
    runs: Sequence[Shown]
    sections: Sequence[Section]
    xs: Sequence[Mapping[str, Sequence[Value]]] = ()
    problems: Sequence[str] = ()
    along: str = "tokens"


def as_json(value: Any) -> Any:
    """Returns blocks and sections as values of JSON; every block names its kind."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {}
        for field in dataclasses.fields(value):
            fields[field.name] = as_json(getattr(value, field.name))
        kind = getattr(value, "kind", None)
        return {"kind": kind, **fields} if kind else fields
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, str) or value is None:
        return value
    if isinstance(value, Sequence):
        return [as_json(item) for item in value]
    return value

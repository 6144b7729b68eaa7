"""The stages of networks that grow: a table, and where in the curves each begins."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from cramjax.reporting import curves
from cramjax.reporting.blocks import Block, Cell, Mark, Table
from cramjax.reporting.drawing import Drawn, places
from cramjax.reporting.reading import RunFiles
from cramjax.reporting.words import is_number


def _stages(run: RunFiles) -> list[dict[str, Any]]:
    """Returns the stages before the whole network; none if the run does not grow."""
    growth = run.config.get("growth")
    listed = growth.get("stages") if isinstance(growth, dict) else None
    stages = []
    for stage in listed if isinstance(listed, list) else []:
        # A frozen configuration has pairs.
        with contextlib.suppress(TypeError, ValueError):
            stages.append(dict(stage))
    return stages


def _is_in_steps(run: RunFiles) -> bool:
    """Returns whether stages end at shares of the optimizer steps, not of the budget."""
    growth = run.config.get("growth")
    return isinstance(growth, dict) and growth.get("until") == "steps"


def _planned_steps(run: RunFiles) -> float | None:
    """Returns the steps of a run by its budget, else by its end; None before it."""
    budget = run.config.get("budget")
    planned = budget.get("steps") if isinstance(budget, dict) else None
    planned = planned if is_number(planned) else run.summary.get("steps")
    return planned if is_number(planned) else None


def _done(run: RunFiles, line: curves.Line) -> float | None:
    """Returns the share at a line that `until` of the stages counts; None if it is not known."""
    if not _is_in_steps(run):
        progress = line.get("progress")
        return progress if is_number(progress) else None
    steps = _planned_steps(run)
    return line["step"] / steps if steps else None


def marks(one: Drawn) -> list[Mark]:
    """Returns the places in the curves of a run where its next stages begin."""
    found = []
    for place, stage in enumerate(_stages(one.run), start=2):
        share = stage.get("until")
        shares = [(_done(one.run, line), line) for line in one.train]
        begun = [line for done, line in shares if is_number(share) and (done or 0.0) > share]
        if begun:
            x = {key: values[0] for key, values in places(begun[:1]).items()}
            found.append(Mark(name=f"{one.run.name}: stage {place}", run=one.number, x=x))
    return found


def blocks(drawn: Sequence[Drawn]) -> list[Block]:
    """Returns the table of the stages of all runs; nothing if none grows."""
    rows = []
    numbers = []
    for one in drawn:
        stages = _stages(one.run)
        if not stages:
            continue
        for place, stage in enumerate([*stages, {}], start=1):
            until = stage.pop("until", None)
            whole = "steps" if _is_in_steps(one.run) else "budget"
            end = f"{until:.0%} of the {whole}" if is_number(until) else "the end"
            network = ", ".join(f"{key}={value}" for key, value in stage.items())
            texts = [f"{one.run.name}, stage {place}", end, network or "the whole network"]
            rows.append([Cell(text=text) for text in texts])
            numbers.append(one.number)
    if not rows:
        return []
    columns = ["stage", "until", "network"]
    return [Table(title="Stages", columns=columns, rows=rows, row_runs=numbers)]

"""The sections about finetunings: every seed of every task as a point, beside published scores."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.glue.published import GLUE
from cramjax.glue.tasks import SUITES, Task
from cramjax.reporting.blocks import (
    Axis,
    Block,
    Cell,
    Cloud,
    Code,
    Note,
    Point,
    Scatter,
    Section,
    Table,
)
from cramjax.reporting.words import is_number

Results = Mapping[str, Any]


def section(folders: Sequence[tuple[str, pathlib.Path, Results]]) -> Section | None:
    """Returns the section about finetunings; None without one.

    Args:
        folders: (name, folder, content of results.json) of each.
    """
    if not folders:
        return None
    blocks: list[Block] = []
    for suite in dict.fromkeys(str(results.get("suite")) for *_, results in folders):
        chosen = [(name, results) for name, _, results in folders if results.get("suite") == suite]
        if suite in SUITES:
            blocks += _suite(suite, chosen)
        else:
            blocks.append(Note(text=f"The suite {suite} of a results.json is not known here."))
    for name, _, results in folders:
        if results.get("command"):
            blocks.append(Code(title=name, text=str(results["command"])))
    return Section(name="finetuning", title="Finetuning", blocks=blocks)


def _suite(suite: str, chosen: Sequence[tuple[str, Results]]) -> list[Block]:
    columns = _columns(suite, [results for _, results in chosen])
    if not columns:
        return [Note(text="No task of it has a result yet.")]
    labels = [f"{task.folder} {metric}" for task, metric in columns]
    clouds = []
    rows = []
    for name, results in chosen:
        points = []
        model = f"{results.get('model', '')} ({name})"
        cells = [Cell(text=model)]
        for (task, metric), label in zip(columns, labels, strict=True):
            spread = _spread(results, task, metric)
            cells.append(_cell(spread))
            seeds = [seed for seed in spread.get("seeds", []) if is_number(seed)]
            for place, value in enumerate(seeds):
                points.append(Point(x=label, y=value, lines=[label, f"seed {place}: {value}"]))
        cells.append(_average(results))
        rows.append(cells)
        clouds.append(Cloud(name=model, points=points))

    if suite == "glue":
        published = _published(columns, labels)
        clouds += [cloud for cloud, _ in published]
        rows += [row for _, row in published]
    protocols = {str(_protocol(results).get("name")) for _, results in chosen}
    return [
        Scatter(
            title=f"{suite}: every seed",
            about="Scores in percent; each point is one seed, grey points are published models.",
            x=Axis(label="task", categories=labels),
            y=Axis(label="percent"),
            clouds=clouds,
        ),
        Table(
            title="Median ± standard deviation over seeds, percent",
            columns=["model", *labels, "average"],
            rows=rows,
        ),
        Note(
            text=f"Protocol: {', '.join(sorted(protocols))}. Published rows are of the full data "
            "and of protocols of their own. * marks an average that lacks tasks."
        ),
    ]


def _columns(suite: str, every: Sequence[Results]) -> list[tuple[Task, str]]:
    """Returns the (task, metric) pairs that have results, in the suite's order."""
    columns = []
    for task in SUITES[suite]:
        for metric in task.headline if task.in_average else task.metrics:
            if any(_spread(results, task, metric) for results in every):
                columns.append((task, metric))
    return columns


def _spread(results: Results, task: Task, metric: str) -> Mapping[str, Any]:
    entry = results.get(task.name)
    spread = entry.get(metric) if isinstance(entry, dict) else None
    if not isinstance(spread, dict) or not isinstance(spread.get("seeds"), list):
        return {}
    return spread if is_number(spread.get("median")) else {}


def _cell(spread: Mapping[str, Any]) -> Cell:
    if not spread:
        return Cell(text="–")
    text = f"{spread['median']:.1f}"
    if len(spread["seeds"]) > 1 and is_number(spread.get("std")):
        text += f" ± {spread['std']:.1f}"
    return Cell(text=text, value=spread["median"])


def _average(results: Results) -> Cell:
    value = results.get("average")
    if not is_number(value):
        return Cell(text="–")
    mark = "*" if results.get("average_missing") else ""
    return Cell(text=f"{value:.1f}{mark}", value=value)


def _protocol(results: Results) -> Mapping[str, Any]:
    protocol = results.get("protocol")
    return protocol if isinstance(protocol, dict) else {}


def _published(
    columns: Sequence[tuple[Task, str]], labels: Sequence[str]
) -> list[tuple[Cloud, list[Cell]]]:
    """Returns points and row of each published model of GLUE."""
    found = []
    for model in GLUE:
        points = []
        cells = [Cell(text=f"{model.model} ({model.source})")]
        for (task, metric), label in zip(columns, labels, strict=True):
            scores = model.scores.get(task.name, ())
            place = task.headline.index(metric) if metric in task.headline else len(scores)
            if place >= len(scores):
                cells.append(Cell(text="–"))
                continue
            value = scores[place]
            cells.append(Cell(text=f"{value:.1f}", value=value))
            lines = [model.model, f"{label}: {value}", model.protocol]
            points.append(Point(x=label, y=value, lines=lines))
        cells.append(Cell(text=f"{model.average:.1f}", value=model.average))
        found.append((Cloud(name=model.model, points=points, is_context=True), cells))
    return found

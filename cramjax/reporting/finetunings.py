"""The sections about finetunings: every seed of every task as a point, beside published scores."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.glue.published import GLUE
from cramjax.glue.tasks import OTHER, SUITES, TITLES
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

# Scores of a whole task, for the tasks of no suite. Those of one type of entities or of questions
# with an answer stand in results.json alone.
_METRICS = (
    "best_f1", "best_exact", "f1", "precision", "recall", "exact_match", "accuracy", "macro_f1",
    "matthews", "pearson", "spearman", "mrr", "recall@1", "recall@10",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Column:
    """A metric of a task, and the heading of its column."""

    task: str
    metric: str
    label: str


def section(folders: Sequence[tuple[str, pathlib.Path, Results]]) -> Section | None:
    """Returns the section about finetunings; None without one.

    Args:
        folders: (name, folder, content of results.json) of each.
    """
    if not folders:
        return None
    blocks: list[Block] = []
    for suite in dict.fromkeys(_suite_of(results) for *_, results in folders):
        chosen = [(name, results) for name, _, results in folders if _suite_of(results) == suite]
        blocks += _suite(suite, chosen)
    for name, _, results in folders:
        if results.get("command"):
            blocks.append(Code(title=name, text=str(results["command"])))
    return Section(name="finetuning", title="Finetuning", blocks=blocks)


def _suite_of(results: Results) -> str:
    """Returns the suite of a finetuning; one that is not known counts as none."""
    suite = str(results.get("suite"))
    return suite if suite in SUITES else OTHER


def _suite(suite: str, chosen: Sequence[tuple[str, Results]]) -> list[Block]:
    columns = _columns(suite, [results for _, results in chosen])
    if not columns:
        return [Note(text="No task of it has a result yet.")]
    labels = [column.label for column in columns]
    clouds = []
    rows = []
    for name, results in chosen:
        points = []
        model = f"{results.get('model', '')} ({name})"
        cells = [Cell(text=model)]
        for column in columns:
            spread = _spread(results, column.task, column.metric)
            cells.append(_cell(spread))
            seeds = [seed for seed in spread.get("seeds", []) if is_number(seed)]
            for place, value in enumerate(seeds):
                lines = [column.label, f"seed {place}: {value}"]
                points.append(Point(x=column.label, y=value, lines=lines))
        cells.append(_average(results))
        rows.append(cells)
        clouds.append(Cloud(name=model, points=points))

    about = "Scores in percent; each point is one seed"
    protocols = {str(_protocol(results).get("name")) for _, results in chosen}
    note = f"Protocol: {', '.join(sorted(protocols))}. * marks an average that lacks tasks."
    if suite == "glue":
        published = _published(columns)
        clouds += [cloud for cloud, _ in published]
        rows += [row for _, row in published]
        about += ", grey points are published models"
        note += " Published rows are of the full data and of protocols of their own."
    return [
        Scatter(
            title=f"{TITLES[suite]}: every seed",
            about=f"{about}.",
            x=Axis(label="task", categories=labels),
            y=Axis(label="percent"),
            clouds=clouds,
            is_apart=True,
        ),
        Table(
            title="Median ± standard deviation over seeds, percent",
            columns=["model", *labels, "average"],
            rows=rows,
        ),
        Note(text=note),
    ]


def _columns(suite: str, every: Sequence[Results]) -> list[_Column]:
    """Returns the columns that have results: in the suite's order, of other tasks in the files'."""
    wanted: list[_Column] = []
    for task in SUITES.get(suite, ()):
        for metric in task.headline if task.in_average else task.metrics:
            label = f"{task.folder} {metric}"
            wanted.append(_Column(task=task.name, metric=metric, label=label))
    if suite == OTHER:
        for name in dict.fromkeys(name for results in every for name in _tasks(results)):
            for metric in _METRICS:
                wanted.append(_Column(task=name, metric=metric, label=f"{name} {metric}"))
    return [column for column in wanted if _is_known(column, every)]


def _is_known(column: _Column, every: Sequence[Results]) -> bool:
    return any(_spread(results, column.task, column.metric) for results in every)


def _tasks(results: Results) -> list[str]:
    """Returns the names of the tasks in a results.json."""
    return [
        name for name, entry in results.items() if isinstance(entry, dict) and "n_eval" in entry
    ]


def _spread(results: Results, task: str, metric: str) -> Mapping[str, Any]:
    entry = results.get(task)
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


def _published(columns: Sequence[_Column]) -> list[tuple[Cloud, list[Cell]]]:
    """Returns points and row of each published model of GLUE."""
    headlines = {task.name: task.headline for task in SUITES["glue"]}
    found = []
    for model in GLUE:
        points = []
        cells = [Cell(text=f"{model.model} ({model.source})")]
        for column in columns:
            scores = model.scores.get(column.task, ())
            headline = headlines[column.task]
            is_shown = column.metric in headline
            place = headline.index(column.metric) if is_shown else len(scores)
            if place >= len(scores):
                cells.append(Cell(text="–"))
                continue
            value = scores[place]
            cells.append(Cell(text=f"{value:.1f}", value=value))
            lines = [model.model, f"{column.label}: {value}", model.protocol]
            points.append(Point(x=column.label, y=value, lines=lines))
        cells.append(Cell(text=f"{model.average:.1f}", value=model.average))
        found.append((Cloud(name=model.model, points=points, is_context=True), cells))
    return found

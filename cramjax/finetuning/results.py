"""From finished runs to what people look at: results.json, a table, predictions.

Every figure is the median over seeds unless it says otherwise; where a grid was searched, the point with the best median on the
evaluation split is shown and the others are listed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cramjax.glue.published import GLUE
from cramjax.glue.tasks import SUITES, Task

_SUFFIX = {"validation_mismatched": "_mm"}
_TITLES = {"superglue": "SuperGLUE", "glue": "GLUE"}
_METRIC_NAMES = {
    "matthews": "MCC",
    "accuracy": "acc",
    "accuracy_mm": "acc mm",
    "f1": "F1",
    "macro_f1": "macro-F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "f1a": "F1a",
    "exact_match": "EM",
    "gender_parity": "parity",
}


def metric_names(metrics: dict[str, float], split: str) -> dict[str, float]:
    """Metrics of an evaluation split by the name they have in results: those of the second one of MNLI end in _mm."""
    return {name + _SUFFIX.get(split, ""): value for name, value in metrics.items()}


def headline(task: Task, metrics: dict[str, float]) -> float:
    """What a run is judged by: the mean of its task's headline metrics that are there."""
    return statistics.mean(metrics[name] for name in task.headline if name in metrics)


def summarize(
    task: Task, points: Sequence[tuple[dict[str, Any], Sequence[dict[str, Any]]]]
) -> dict[str, Any]:
    """The entry of a task in results.json: for each metric median, mean, std, min, max and the seeds' values, of the best point.

    Args:
        points: (settings that differ, finished runs) for each point of the grid that has any.
    """
    scored = [(point, runs, [run["metrics"][task.name] for run in runs]) for point, runs in points]
    best = max(
        range(len(scored)),
        key=lambda i: statistics.median(headline(task, found) for found in scored[i][2]),
    )
    point, runs, found = scored[best]
    entry: dict[str, Any] = {
        name: _spread([metrics[name] for metrics in found]) for name in found[0]
    }
    entry |= {
        "point": point,
        "seeds": [run["seed"] for run in runs],
        "failed": sum(_failed(run) for run in runs),
    }
    entry["seconds_per_seed"] = round(statistics.median(run["seconds"] for run in runs), 2)
    illegal = [sum(run["illegal"].values()) for run in runs]
    if any(illegal):
        entry["illegal_outputs"] = illegal
    if len(scored) > 1:
        entry["grid"] = [
            {
                "point": other,
                "median": statistics.median(headline(task, one) for one in metrics),
                "failed": sum(map(_failed, done)),
            }
            for other, done, metrics in scored
        ]
    return entry


def _failed(run: dict[str, Any]) -> bool:
    return run["status"] != "ok" or run["constant"]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 2),
        "mean": round(statistics.mean(values), 2),
        "std": round(statistics.stdev(values), 2) if len(values) > 1 else 0.0,
        "min": round(min(values), 2),
        "max": round(max(values), 2),
        "seeds": [round(value, 2) for value in values],
    }


def average(suite: str, entries: dict[str, dict[str, Any]]) -> tuple[float | None, list[str]]:
    """The suite's average of medians over the tasks that are there, and the names of what is missing from it.

    GLUE: the mean of nine numbers, MNLI matched and mismatched among them, WNLI left out (Cramming, arXiv 2212.14034, section 5).
    SuperGLUE: the mean of the tasks, of each its metrics' mean (arXiv 1905.00537, section 4).
    """
    numbers, missing = [], []
    for task in SUITES[suite]:
        if not task.in_average:
            continue
        entry = entries.get(task.name, {})
        there = [entry[name]["median"] for name in task.headline if name in entry]
        missing += [f"{task.name} {name}" for name in task.headline if name not in entry]
        if there:
            numbers.extend(there if suite == "glue" else [statistics.mean(there)])
    return (round(statistics.mean(numbers), 2) if numbers else None), missing


def table(suite: str, results: dict[str, Any], *, compare: bool = False) -> list[list[str]]:
    """Rows of cells, the header first: tasks in the suite's order with their headline metrics, median ± std, then the average."""
    columns = [
        (task, name)
        for task in SUITES[suite]
        for name in (task.headline if task.in_average else task.metrics)
        if name in results.get(task.name, {})
    ]
    header = [
        "model",
        *(f"{task.folder} {_METRIC_NAMES[name]}" for task, name in columns),
        "average",
    ]
    cells = [_cell(results[task.name][name]) for task, name in columns]
    shown = results["average"]
    mark = "*" if results["average_missing"] else ""
    rows = [header, [results["model"], *cells, "–" if shown is None else f"{shown:.1f}{mark}"]]
    if compare and suite == "glue":
        for published in GLUE:
            known = [
                _published(published.scores.get(task.name, ()), task.headline.index(name))
                for task, name in columns
                if task.in_average
            ]
            blank = ["–"] * (len(columns) - len(known))
            rows.append([published.model, *known, *blank, f"{published.average:.1f}"])
    return rows


def _published(scores: Sequence[float], index: int) -> str:
    return f"{scores[index]:.1f}" if index < len(scores) else "–"


def _cell(spread: dict[str, Any]) -> str:
    return (
        f"{spread['median']:.1f} ± {spread['std']:.1f}"
        if len(spread["seeds"]) > 1
        else f"{spread['median']:.1f}"
    )


def markdown(suite: str, results: dict[str, Any], *, compare: bool = False) -> str:
    """results.md: the table, what was done, what differs from the published data, and how to do it again."""
    first, *rest = table(suite, results, compare=compare)
    protocol = results["protocol"]
    lines = [
        f"# {_TITLES[suite]}: {results['model']}",
        "",
        *map(_line, (first, ["---"] * len(first), *rest)),
        "",
    ]
    lines.append(
        f"Development sets, percent, {describe_seeds(results)}. Protocol `{protocol['name']}`: {protocol['source']}."
    )
    if results["average_missing"]:
        lines += ["", f"\\* The average lacks {', '.join(results['average_missing'])}."]
    if notes := list(_notes(results)):
        lines += ["", *(f"- {note}" for note in notes)]
    if compare and suite == "glue":
        lines += ["", "Published rows are of the full data and of protocols of their own:", ""]
        lines += [
            f"- {published.model}: {published.source}; {published.protocol}" for published in GLUE
        ]
    lines += [
        "",
        "Settings:",
        "",
        "```",
        *_settings(results),
        "```",
        "",
        "```bash",
        results["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


def _notes(results: dict[str, Any]) -> Iterator[str]:
    """What a reader has to know of each task."""
    for name, entry in _entries(results):
        for difference in entry["data_differences"]:
            yield f"{name}: {difference}; its score compares only with runs on the same files"
        if entry["failed"]:
            yield f"{name}: {entry['failed']} of {len(entry['seeds'])} seeds failed (diverged, or gave one answer for all)"
        if "illegal_outputs" in entry:
            yield f"{name}: outputs that were no answer, by seed: {entry['illegal_outputs']} of {entry['n_eval']}"
    for name, note in results["unfinished"].items():
        yield f"{name}: not finished, {note}"


def describe_seeds(results: dict[str, Any]) -> str:
    """ "median ± standard deviation of 5 seeds", or what else it is."""
    counts = sorted({len(entry["seeds"]) for _, entry in _entries(results)})
    if counts == [1]:
        return "one seed"
    return f"median ± standard deviation of {' or '.join(map(str, counts))} seeds"


def _settings(results: dict[str, Any]) -> list[str]:
    """The settings of all tasks, then what a task has of its own."""

    def listed(values):
        return ", ".join(f"{key}={value}" for key, value in values.items())

    own = [
        f"{name}: {listed(entry['point'])}" for name, entry in _entries(results) if entry["point"]
    ]
    return [listed(results["protocol"]["settings"]), *own]


def _entries(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (name, entry)
        for name, entry in results.items()
        if isinstance(entry, dict) and "n_eval" in entry
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal, a column a model: tasks are more than fit beside each other."""
    width = 2 + max(len(cell) for row in rows for cell in row)
    columns = zip(*rows, strict=True)
    return "\n".join(
        f"{name:<22}" + " ".join(f"{cell:>{width}}" for cell in cells) for name, *cells in columns
    )


def is_constant(predictions: Sequence[Any]) -> bool:
    """Whether a model gave every row the same answer, which a failed finetuning does."""
    if len(predictions) < 2:
        return False
    return bool(np.all([value == predictions[0] for value in predictions]))

"""Turns finished runs into what people look at: results.json and a table.

A figure is the median over seeds unless it says otherwise. After a search over a grid, the point
with the best median on the evaluation split is shown, and the others are listed.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cramjax.glue.published import GLUE
from cramjax.glue.tasks import TITLES, Task

_METRIC_NAMES = {
    "matthews": "MCC",
    "accuracy": "acc",
    "accuracy_mm": "acc mm",
    "f1": "F1",
    "macro_f1": "macro-F1",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "mrr": "MRR",
    "f1a": "F1a",
    "exact_match": "EM",
    "gender_parity": "parity",
    "best_f1": "best F1",
}


def headline(task: Task, metrics: Mapping[str, float]) -> float:
    """Returns the score of a run: the mean of the task's headline metrics that are present."""
    return statistics.mean(metrics[name] for name in task.headline if name in metrics)


def summarize(
    task: Task, points: Sequence[tuple[dict[str, Any], Sequence[dict[str, Any]]]]
) -> dict[str, Any]:
    """Returns the entry of a task in results.json.

    It has the median, mean, std, min, max and the seeds' values of each metric at the best point.

    Args:
        points: (settings that differ, finished runs) of each point of the grid that has any.
    """
    medians = [_median_headline(task, runs) for _, runs in points]
    # The first of equally good points.
    point, runs = points[medians.index(max(medians))]

    entry: dict[str, Any] = {}
    metrics = [run["metrics"][task.name] for run in runs]
    for name in metrics[0]:
        entry[name] = _spread([seed_metrics[name] for seed_metrics in metrics])
    entry["point"] = point
    entry["seeds"] = [run["seed"] for run in runs]
    entry["failed"] = sum(_is_failed(run) for run in runs)
    entry["seconds_per_seed"] = round(statistics.median(run["seconds"] for run in runs), 2)

    n_illegal = [sum(run["illegal"].values()) for run in runs]
    if any(n_illegal):
        entry["illegal_outputs"] = n_illegal
    if len(points) > 1:
        entry["grid"] = [
            {"point": other, "median": median, "failed": sum(map(_is_failed, other_runs))}
            for (other, other_runs), median in zip(points, medians, strict=True)
        ]
    return entry


def _median_headline(task: Task, runs: Sequence[dict[str, Any]]) -> float:
    return statistics.median(headline(task, run["metrics"][task.name]) for run in runs)


def _is_failed(run: dict[str, Any]) -> bool:
    return run["status"] != "ok" or run["constant"]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "median": round(statistics.median(values), 2),
        "mean": round(statistics.mean(values), 2),
        "std": round(std, 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
        "seeds": [round(value, 2) for value in values],
    }


def average(
    tasks: Sequence[Task], entries: Mapping[str, dict[str, Any]]
) -> tuple[float | None, list[str]]:
    """Returns the average over the tasks that are present, and the names of the missing.

    GLUE: the mean of nine medians, with MNLI matched and mismatched, without WNLI (Cramming,
    arXiv 2212.14034, section 5). SuperGLUE: the mean over tasks; a task counts with the mean of its
    metrics (arXiv 1905.00537, section 4), and so does a task of no suite.

    Args:
        tasks: of a suite, or those of a finetuning that are in none.
        entries: of results.json.
    """
    numbers: list[float] = []
    missing: list[str] = []
    for task in tasks:
        if not task.in_average:
            continue
        entry = entries.get(task.name, {})
        medians = [entry[name]["median"] for name in task.headline if name in entry]
        missing += [f"{task.name} {name}" for name in task.headline if name not in entry]
        if task.suite == "glue":
            numbers.extend(medians)
        elif medians:
            numbers.append(statistics.mean(medians))

    if not numbers:
        return None, missing
    return round(statistics.mean(numbers), 2), missing


def table(
    tasks: Sequence[Task], results: dict[str, Any], *, compare: bool = False
) -> list[list[str]]:
    """Returns rows of cells: the header, then a model in each row.

    The columns are `tasks` in their order with their headline metrics, median ± std, and
    the average at the end. `compare` adds the published models of GLUE.
    """
    columns = _columns(tasks, results)
    header = ["model"]
    row = [results["model"]]
    for task, name in columns:
        header.append(f"{task.folder} {_METRIC_NAMES.get(name, name)}")
        row.append(_cell(results[task.name][name]))

    header.append("average")
    if results["average"] is None:
        row.append("–")
    else:
        mark = "*" if results["average_missing"] else ""
        row.append(f"{results['average']:.1f}{mark}")

    rows = [header, row]
    if compare and results["suite"] == "glue":
        rows += _published_rows(columns)
    return rows


def _columns(tasks: Sequence[Task], results: dict[str, Any]) -> list[tuple[Task, str]]:
    """Returns the (task, metric) pairs that have results, in the order of the tasks."""
    columns = []
    for task in tasks:
        names = task.headline if task.in_average else task.metrics
        entry = results.get(task.name, {})
        columns += [(task, name) for name in names if name in entry]
    return columns


def _published_rows(columns: Sequence[tuple[Task, str]]) -> list[list[str]]:
    """Returns a row for each published model of GLUE, with "–" where it has no score."""
    rows = []
    for published in GLUE:
        known = []
        for task, name in columns:
            if task.in_average:
                scores = published.scores.get(task.name, ())
                known.append(_score(scores, task.headline.index(name)))
        blank = ["–"] * (len(columns) - len(known))
        rows.append([published.model, *known, *blank, f"{published.average:.1f}"])
    return rows


def _score(scores: Sequence[float], index: int) -> str:
    return f"{scores[index]:.1f}" if index < len(scores) else "–"


def _cell(spread: dict[str, Any]) -> str:
    if len(spread["seeds"]) > 1:
        return f"{spread['median']:.1f} ± {spread['std']:.1f}"
    return f"{spread['median']:.1f}"


def markdown(tasks: Sequence[Task], results: dict[str, Any], *, compare: bool = False) -> str:
    """Returns results.md: the table, notes, settings, and the command that repeats it."""
    header, *rows = table(tasks, results, compare=compare)
    protocol = results["protocol"]
    lines = [f"# {TITLES[results['suite']]}: {results['model']}", ""]
    lines += [_line(header), _line(["---"] * len(header)), *map(_line, rows), ""]
    lines.append(
        f"Development sets, percent, {describe_seeds(results)}. "
        f"Protocol `{protocol['name']}`: {protocol['source']}."
    )

    if results["average_missing"]:
        lines += ["", f"\\* The average lacks {', '.join(results['average_missing'])}."]
    notes = [f"- {note}" for note in _notes(results)]
    if notes:
        lines += ["", *notes]
    if compare and results["suite"] == "glue":
        lines += ["", "Published rows are of the full data and of protocols of their own:", ""]
        for published in GLUE:
            lines.append(f"- {published.model}: {published.source}; {published.protocol}")

    lines += ["", "Settings:", "", "```", *_settings(results), "```", ""]
    lines += ["```bash", results["command"], "```", ""]
    return "\n".join(lines)


def _notes(results: dict[str, Any]) -> Iterator[str]:
    """Yields what a reader has to know about each task."""
    for name, entry in _entries(results):
        n_seeds = len(entry["seeds"])
        for difference in entry["data_differences"]:
            yield f"{name}: {difference}; its score compares only with runs on the same files"
        if entry["failed"]:
            yield (
                f"{name}: {entry['failed']} of {n_seeds} seeds failed "
                "(diverged, or gave one answer for all)"
            )
        if "illegal_outputs" in entry:
            yield (
                f"{name}: outputs that were no answer, by seed: {entry['illegal_outputs']} "
                f"of {entry['n_eval']}"
            )
    for name, note in results["unfinished"].items():
        yield f"{name}: not finished, {note}"


def describe_seeds(results: dict[str, Any]) -> str:
    """Returns "median ± standard deviation of 5 seeds", or "one seed"."""
    counts = sorted({len(entry["seeds"]) for _, entry in _entries(results)})
    if counts == [1]:
        return "one seed"
    return f"median ± standard deviation of {' or '.join(map(str, counts))} seeds"


def _settings(results: dict[str, Any]) -> list[str]:
    """Returns a line with the settings of all tasks, then one for each task that differs."""
    lines = [_assignments(results["protocol"]["settings"])]
    for name, entry in _entries(results):
        if entry["point"]:
            lines.append(f"{name}: {_assignments(entry['point'])}")
    return lines


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _entries(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns (name, entry) of the tasks in results.json."""
    return [
        (name, entry)
        for name, entry in results.items()
        if isinstance(entry, dict) and "n_eval" in entry
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """Returns the table for a terminal: a column for each model, because tasks are too many."""
    width = 2 + max(len(cell) for cell in itertools.chain(*rows))
    lines = []
    for name, *cells in zip(*rows, strict=True):
        lines.append(f"{name:<22}" + " ".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)

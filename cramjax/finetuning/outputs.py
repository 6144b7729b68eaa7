"""Writes the files of a finetuning: results.json, results.md, predictions and the submission."""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from cramjax.console import Announce
from cramjax.files import replacing, write_json
from cramjax.finetuning import results, submission
from cramjax.finetuning.request import FinetuneRequest
from cramjax.glue.rows import TaskData
from cramjax.glue.tasks import Task
from cramjax.tasks import catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedTask:
    """A task with its data and its finished runs.

    Attributes:
        n_train: rows of the training set; of a diagnostic, those of the task that answers it.
        points: (settings that differ, finished runs) of each point of the grid that has any.
    """

    task: Task
    data: TaskData
    n_train: int
    points: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]]


def write_outputs(
    request: FinetuneRequest,
    tasks: Sequence[Task],
    finished: Sequence[FinishedTask],
    unfinished: dict[str, str],
    announce: Announce,
) -> dict[str, Any]:
    """Write all files and return the content of results.json.

    Args:
        tasks: all of the finetuning.
        unfinished: task → why some of its runs are missing.
        announce: receives a line about the submission.
    """
    entries: dict[str, dict[str, Any]] = {}
    server_files: dict[str, list[str]] = {}
    for item in finished:
        name = item.task.name
        entries[name] = _entry(request, item)
        run = _median_run(item, entries[name]["point"])
        predictions = run["predictions"][name]
        folder = request.out / "predictions"
        submission.write_predictions(folder, item.task, predictions, item.data.splits)
        if item.task.kind == "span":
            split = item.task.splits[0]
            rows = item.data.splits[split]
            threshold = run["metrics"][name].get("best_f1_threshold")
            submission.write_answers(folder, item.task, rows, predictions[split], threshold)
        server_files |= _server_files(item, predictions)

    listed = catalogue.listed(tasks)
    suite = tasks[0].suite
    summary = _summary(request, listed, entries, unfinished)
    write_json(request.out / "results.json", summary)
    text = results.markdown(listed, summary, compare=request.compare)
    with replacing(request.out / "results.md") as path:
        path.write_text(text, encoding="utf-8")

    if request.submit and server_files:
        path, lacking = submission.write_submission(request.out, suite, server_files)
        message = f"{path}: {len(server_files)} files"
        if lacking:
            message += f"; the server wants {', '.join(lacking)} as well"
        announce(message)
    return summary


def _entry(request: FinetuneRequest, item: FinishedTask) -> dict[str, Any]:
    """Returns the entry of a task in results.json."""
    entry = results.summarize(item.task, item.points)
    splits = item.data.splits
    max_train = request.protocol.settings_at(entry["point"]).max_train

    # The task file is not there when a card is written.
    entry["kind"] = item.task.kind
    entry["n_train"] = min(item.n_train, max_train or sys.maxsize)
    entry["n_eval"] = sum(len(splits[split]) for split in item.task.splits if split in splits)
    entry["data_differences"] = list(item.data.differences)
    return entry


def _median_run(item: FinishedTask, best: dict[str, Any]) -> dict[str, Any]:
    """Returns the run with the median headline at the point `best`; the lower of two medians."""
    runs = next(runs for point, runs in item.points if point == best)

    def headline(run: dict[str, Any]) -> float:
        return results.headline(item.task, run["metrics"][item.task.name])

    return sorted(runs, key=headline)[(len(runs) - 1) // 2]


def _server_files(
    item: FinishedTask, predictions: dict[str, Sequence[Any]]
) -> dict[str, list[str]]:
    """Returns name → lines of the server's files for the test splits with predictions."""
    files = {}
    for split, name in submission.file_names(item.task).items():
        # Predictions of an earlier --submission stay after the test set is gone.
        if split in predictions and split in item.data.splits:
            files[name] = submission.server_lines(
                item.task, item.data.splits[split], predictions[split]
            )
    return files


def _summary(
    request: FinetuneRequest,
    listed: Sequence[Task],
    entries: dict[str, dict[str, Any]],
    unfinished: dict[str, str],
) -> dict[str, Any]:
    """Returns the content of results.json, tasks in the order of their suite."""
    average, missing = results.average(listed, entries)
    model = pathlib.Path(request.checkpoint).name
    if request.untrained:
        model += " (untrained)"

    # Tasks stand first, in the order of the tables.
    ordered = {task.name: entries[task.name] for task in listed if task.name in entries}
    return ordered | {
        "average": average,
        "average_missing": missing,
        "suite": listed[0].suite,
        "protocol": request.protocol.describe(),
        "model": model,
        "unfinished": unfinished,
        "command": shlex.join(["python", "-m", "cramjax", "finetune", *sys.argv[1:]]),
    }

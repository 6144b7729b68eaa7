"""Finds tasks by their names on the command line, and opens their data.

Beside GLUE and SuperGLUE there are `conll`, `squad`, `squad2`, `sts` and task files.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.glue import rows
from cramjax.glue.rows import TaskData
from cramjax.glue.tasks import OTHER, SUITES, Row, Task, find_tasks
from cramjax.tasks import answers, columns, own, own_data, retrieval, squad, tags

ENTITY_METRICS = ("f1", "precision", "recall", "accuracy")

CONLL = Task(
    suite=OTHER,
    name="conll",
    folder="CoNLL",
    tfds="conll2003",
    fields=("words",),
    labels=None,
    metrics=ENTITY_METRICS,
    headline=("f1",),
    sizes={},
    kind="tags",
)
SQUAD = Task(
    suite=OTHER,
    name="squad",
    folder="SQuAD",
    tfds="squad/v1.1",
    fields=("question", "context"),
    labels=None,
    metrics=answers.METRICS_V1,
    headline=answers.METRICS_V1[:1],
    sizes={"train": 87_599, "validation": 10_570},
    kind="span",
)
SQUAD2 = dataclasses.replace(
    SQUAD,
    name="squad2",
    folder="SQuAD2",
    tfds="squad/v2.0",
    metrics=answers.METRICS_V2,
    headline=answers.METRICS_V2[:1],
    sizes={"train": 130_319, "validation": 11_873},
)
STS = Task(
    suite=OTHER,
    name="sts",
    folder="STS",
    tfds="glue/stsb",
    fields=("text",),
    labels=None,
    metrics=retrieval.CORRELATIONS,
    headline=retrieval.CORRELATIONS[:1],
    sizes={},
    kind="embeddings",
)
"""Embeddings from GLUE's STS-B: they learn from the pairs of its training set that mean the same,
and are scored by the correlation of cosines with all scores of its development set."""

ALIKE = 4.0
"""Score of a pair of STS-B from which on both texts mean the same, but for details (4 of 5)."""

RESULT_KEYS = frozenset("average average_missing suite protocol model unfinished command".split())
"""Keys of results.json beside the tasks, so that no task can have such a name."""

_NAMED = {task.name: task for task in (CONLL, SQUAD, SQUAD2, STS)}
_NOTED = ("kind", "fields", "metrics", "headline")


def find(names: Sequence[str], prefer: str | None = None) -> tuple[Task, ...]:
    """Returns the tasks behind `names`: those of a suite in its order, others as they are named.

    Args:
        names: names of tasks, of a suite, or paths of task files (.yaml).
        prefer: as for `glue.tasks.find_tasks`.

    Raises:
        UserError: for an unknown name, a wrong task file, or tasks of different suites.
    """
    others = []
    of_suites = []
    for name in names:
        if own.is_task_file(name):
            others.append(own.read(name))
        elif name.strip().lower() in _NAMED:
            others.append(_NAMED[name.strip().lower()])
        else:
            of_suites.append(name)
    if others and of_suites:
        # An unknown name is the likelier mistake.
        find_tasks(of_suites, prefer)
        raise UserError(
            f"--task {','.join(names)}: {of_suites[0]} is of a suite and {others[0].name} is not; "
            "run them apart"
        )

    if not others:
        return _of_suites(names, prefer)
    by_name = {task.name: task for task in others}
    reserved = {task.name for task in itertools.chain(*SUITES.values())} | set(_NAMED)
    for task in others:
        if isinstance(task, own.OwnTask) and task.name in RESULT_KEYS:
            raise UserError(f"{task.path}: name={task.name}: is a key of results.json; give a name")
        if isinstance(task, own.OwnTask) and task.name in reserved:
            raise UserError(f"{task.path}: name={task.name}: is another task's; give a name")
    if len(by_name) < len(others):
        raise UserError(f"--task {','.join(names)}: two tasks of one name; give another name")
    return tuple(others)


def _of_suites(names: Sequence[str], prefer: str | None) -> tuple[Task, ...]:
    try:
        return find_tasks(names, prefer)
    except UserError as error:
        if "unknown" not in str(error):
            raise
        raise UserError(f"{error}; others are {', '.join(_NAMED)} and task files (.yaml)") from None


def listed(tasks: Sequence[Task]) -> Sequence[Task]:
    """Returns all tasks of the suite of `tasks`, in its order; `tasks` themselves for others."""
    return SUITES.get(tasks[0].suite, tasks)


def notes(task: Task) -> dict[str, Any]:
    """Returns what a finetuned model notes about its task."""
    noted: dict[str, Any] = {"task": task.name, "suite": task.suite, "labels": task.labels}
    if task.suite == OTHER:
        noted |= {key: getattr(task, key) for key in _NOTED}
    if isinstance(task, own.OwnTask) and task.kind == "embeddings":
        # Its fields are not the columns that it learned from.
        noted["columns"] = (*task.columns, *task.pair, task.label)
    return noted


def noted_task(noted: Mapping[str, Any]) -> Task:
    """Returns the task of a finetuned model, from its `notes`.

    Raises:
        UserError: if they are damaged, or the task is unknown.
    """
    if noted["suite"] != OTHER:
        (task,) = find_tasks([noted["task"]], prefer=noted["suite"])
        return task

    lists = {}
    for key in ("fields", "metrics", "headline", "labels"):
        value = noted.get(key)
        is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        if not is_list and not (key == "labels" and value is None):
            raise UserError(f"the notes of this finetuned model have no {key}; finetune it again")
        lists[key] = None if value is None else tuple(value)
    return Task(
        suite=OTHER,
        name=noted["task"],
        folder=noted["task"],
        tfds="",
        sizes={},
        kind=str(noted.get("kind")),
        **lists,
    )


def kind_in(results: Mapping[str, Any], name: str) -> str:
    """Returns the kind of a task of results.json, "classification" where nothing says.

    Args:
        results: the content of results.json.
        name: of the task.
    """
    noted = results[name].get("kind")
    if isinstance(noted, str):
        return noted
    # Older files do not note it.
    return _NAMED[name].kind if name in _NAMED else "classification"


def open_task(
    task: Task, data_dir: str | None, announce: Announce, *, test: bool = False
) -> TaskData:
    """Read a task.

    Args:
        task: as from `find`.
        data_dir: a folder, or "tfds"; None is possible for a task file.
        announce: receives a line about what was repaired or left out.
        test: reads the test split of a suite's task as well, if it is present.

    Returns:
        The rows, and the task with the labels and the evaluation splits that the data have. A test
        split of other tasks has labels, and is scored.

    Raises:
        UserError: for missing or damaged data.
    """
    if isinstance(task, own.OwnTask):
        return _completed(own_data.open_task(task, data_dir, announce))
    if data_dir is None:
        raise _folder_missing(task)
    if task.suite != OTHER:
        return rows.open_task(task, data_dir, announce, test=test)
    if task.kind == "embeddings":
        return _completed(_alike(task, data_dir, announce))

    folder = pathlib.Path(data_dir)
    if data_dir != "tfds" and not folder.is_dir():
        raise UserError(
            f"--data_dir {data_dir}: no such folder; name that of {task.folder}'s files"
        )
    names = ["train", "validation"]
    if task.kind == "tags":
        is_there = data_dir == "tfds" or columns.file_of(folder, "test", required=False)
        names += ["test"] if is_there else []
    splits = {}
    for split in names:
        splits[split] = _read(task, data_dir, split, announce)
        if not splits[split]:
            raise UserError(f"{task.folder}: the split {split} in {data_dir} has no rows")

    differences = tuple(_differences(task, splits))
    for difference in differences:
        announce(f"{task.folder}: {difference}; scores compare only with runs on the same files")
    return _completed(TaskData(task=task, splits=splits, differences=differences))


def _alike(task: Task, data_dir: str, announce: Announce) -> TaskData:
    """Returns STS-B as pairs: those of training that are alike, and all of validation."""
    (scored,) = find_tasks(["stsb"])
    data = rows.open_task(scored, data_dir, announce)
    first, second = scored.fields
    splits: dict[str, list[Row]] = {}
    for split, found in data.splits.items():
        splits[split] = [
            {"idx": row["idx"], "texts": (row[first], row[second]), "label": row["label"]}
            for row in found
        ]
    all_pairs = splits["train"]
    alike = [row for row in all_pairs if row["label"] >= ALIKE]
    if not alike:
        raise UserError(f"{task.folder}: no training pair in {data_dir} has a score of {ALIKE:g}")

    announce(
        f"{task.folder}: {len(alike):,} of {len(all_pairs):,} training pairs have a score of "
        f"{ALIKE:g} or more and are learned from"
    )
    return dataclasses.replace(data, task=task, splits=splits | {"train": alike})


def check_needs_no_folder(tasks: Sequence[Task]) -> None:
    """Raises UserError for a task whose data lie in a folder that is to be named."""
    for task in tasks:
        if not isinstance(task, own.OwnTask):
            raise _folder_missing(task)


def _folder_missing(task: Task) -> UserError:
    return UserError(f"--data_dir: give the folder with the data of {task.name}, or tfds")


def _differences(task: Task, splits: Mapping[str, list[Row]]) -> list[str]:
    return [
        f"{split} has {len(splits[split]):,} rows where {published:,} were published"
        for split, published in task.sizes.items()
        if len(splits[split]) != published
    ]


def _read(task: Task, data_dir: str, split: str, announce: Announce) -> list[Row]:
    folder = pathlib.Path(data_dir)
    if task.kind == "tags":
        if data_dir == "tfds":
            found = _from_tfds(task, split)
        else:
            folder = columns.file_of(folder, split) or folder
            found = columns.read(folder)
        return columns.as_iob2(folder, found, announce)
    if data_dir == "tfds":
        return squad.placed(data_dir, _from_tfds(task, split), announce)
    return squad.read(squad.file_of(task.name, folder, split), announce)


def _from_tfds(task: Task, split: str) -> list[Row]:
    from cramjax.glue import tfds_rows

    return tfds_rows.read(task, split)


def _completed(data: TaskData) -> TaskData:
    """Returns the data with a task that knows their splits, and the tags of their rows.

    "O" comes first. Tags that are no entities are scored by accuracy.
    """
    evaluated = tuple(split for split in data.splits if split != "train")
    task = dataclasses.replace(data.task, splits=evaluated)
    if task.kind != "tags":
        return dataclasses.replace(data, task=task)
    found: set[str] = set()
    for split_rows in data.splits.values():
        for row in split_rows:
            found.update(row["label"])

    labels = tuple(sorted(found, key=lambda tag: (tag != tags.OUTSIDE, tag)))
    task = dataclasses.replace(task, labels=labels)
    if not tags.are_entities(found) or found == {tags.OUTSIDE}:
        task = dataclasses.replace(task, metrics=("accuracy",), headline=("accuracy",))
    return dataclasses.replace(data, task=task)

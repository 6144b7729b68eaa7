"""Predictions as files: of the development sets for people, of the test sets as the servers of GLUE and SuperGLUE take them."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

from cramjax.glue.tasks import SUITES, Row, Task

# GLUE's server wants numbers where its files have numbers.
_NAMED = {"mnli", "qnli", "rte"}
_GLUE_FILES = {"mnli": {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}}


def write_predictions(
    folder: pathlib.Path, task: Task, splits: dict[str, Sequence[Any]], rows: dict[str, list[Row]]
) -> None:
    """predictions/<task>.tsv (a second split of MNLI: <task>_mm.tsv) with the columns index, prediction and label, in the file's order."""
    for number, split in enumerate(name for name in task.splits if name in splits):
        path = folder / f"{task.name}{'_mm' if number else ''}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["index\tprediction\tlabel"]
        for row, value in zip(rows[split], splits[split], strict=True):
            label = (
                " | ".join(row["label"])
                if isinstance(row["label"], list)
                else _text(task, row["label"])
            )
            lines.append(f"{_index(row)}\t{_text(task, value)}\t{label}")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _index(row: Row) -> str:
    return (
        "-".join(map(str, row["idx"])) if isinstance(row["idx"], tuple | list) else str(row["idx"])
    )


def _text(task: Task, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return task.labels[value] if isinstance(value, int) and task.labels else str(value)


def file_names(task: Task) -> dict[str, str]:
    """The name of the server's file for each test split of `task`."""
    if task.suite == "superglue":
        return {
            split.replace("validation", "test"): f"{task.folder}.jsonl" for split in task.splits
        }
    return _GLUE_FILES.get(task.name, {"test": f"{task.folder}.tsv"})


def server_lines(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> list[str]:
    """The lines of a server's file; an answer that is none is the first label, or 0."""
    if task.suite == "glue":
        lines = [
            f"{row['idx']}\t{_glue_value(task, value)}"
            for row, value in zip(rows, predictions, strict=True)
        ]
        return ["index\tprediction", *lines]
    if task.kind == "answers":
        return [json.dumps(passage) for passage in _multirc(rows, predictions)]
    return [
        json.dumps(
            {
                "idx": row["idx"][-1] if isinstance(row["idx"], tuple) else row["idx"],
                "label": _superglue_value(task, value),
            }
        )
        for row, value in zip(rows, predictions, strict=True)
    ]


def _glue_value(task: Task, value: Any) -> str:
    if task.kind == "regression":
        return f"{min(max(value or 0.0, 0.0), 5.0):.3f}"
    return task.labels[value or 0] if task.name in _NAMED else str(value or 0)


def _superglue_value(task: Task, value: Any) -> Any:
    if task.kind == "entities":
        return value or ""
    if task.kind == "choice":
        return value or 0
    name = task.labels[value or 0]
    return name.lower() if task.labels == ("False", "True") else name


def _multirc(rows: Sequence[Row], predictions: Sequence[Any]) -> list[dict[str, Any]]:
    passages: dict[Any, dict[Any, list[dict]]] = {}
    for row, value in zip(rows, predictions, strict=True):
        passage, question, answer = row["idx"]
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": value or 0})
    return [
        {
            "idx": passage,
            "passage": {
                "questions": [
                    {"idx": number, "answers": answers} for number, answers in questions.items()
                ]
            },
        }
        for passage, questions in passages.items()
    ]


def write_submission(
    folder: pathlib.Path, suite: str, files: dict[str, Iterable[str]]
) -> tuple[pathlib.Path, list[str]]:
    """submission.zip in `folder` with the server's files in its order; returns it and the names the server still wants.

    Args:
        files: name of a server's file → its lines.
    """
    wanted = [name for task in SUITES[suite] for name in file_names(task).values()]
    path = folder / "submission.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in wanted:
            if name in files:
                # A fixed date: the same predictions are the same file.
                archive.writestr(
                    zipfile.ZipInfo(name), "\n".join(files[name]) + "\n", zipfile.ZIP_DEFLATED
                )
    return path, [name for name in wanted if name not in files]

"""Writes predictions as files.

Those of the development sets are for people, those of the test sets have the form that the servers
of GLUE and SuperGLUE take.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cramjax.files import replacing, write_json
from cramjax.finetuning.heads import head_of
from cramjax.glue.tasks import OTHER, SUITES, Row, Task
from cramjax.tasks import answers
from cramjax.tasks.metric_names import suffix_of

# GLUE's server takes names of classes for these tasks, and numbers for the others.
_NAMED = {"mnli", "qnli", "rte"}
_GLUE_FILES = {"mnli": {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}}


def write_predictions(
    folder: pathlib.Path,
    task: Task,
    splits: Mapping[str, Sequence[Any]],
    rows: Mapping[str, Sequence[Row]],
) -> None:
    """Write <task>.tsv with the columns index, prediction and label, in the order of the rows.

    The column label is empty for pairs without one. MNLI's second split goes to <task>_mm.tsv, a
    test split with labels to <task>_test.tsv.

    Args:
        splits: predictions by split.
        rows: rows by split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = head_of(task).text
    for split in task.splits:
        if split not in splits:
            continue

        suffix = suffix_of(task, split)
        lines = ["index\tprediction\tlabel"]
        for row, prediction in zip(rows[split], splits[split], strict=True):
            # Pairs that belong together have none.
            label = text(task, row["label"]) if "label" in row else ""
            lines.append(f"{_index_text(row['idx'])}\t{text(task, prediction)}\t{label}")
        with replacing(folder / f"{task.name}{suffix}.tsv") as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_answers(
    folder: pathlib.Path,
    task: Task,
    rows: Sequence[Row],
    predictions: Sequence[Any],
    threshold: float | None,
) -> None:
    """Write <task>.json with the answers in SQuAD's form, question → text.

    With a threshold they are "" where the odds are over it, and <task>_null_odds.json has the odds.

    Args:
        rows, predictions: of the first evaluation split.
        threshold: of the best F1; None for a task, or a model, without odds.
    """
    keyed = {row["idx"]: found for row, found in zip(rows, predictions, strict=True)}
    texts = {key: found["text"] for key, found in keyed.items()}
    if threshold is not None:
        odds = {key: found["no_answer"] for key, found in keyed.items()}
        texts = answers.final_texts(texts, odds, threshold)
        write_json(folder / f"{task.name}_null_odds.json", odds)
    write_json(folder / f"{task.name}.json", texts)


def _index_text(index: Any) -> str:
    if isinstance(index, tuple | list):
        return "-".join(map(str, index))
    return str(index)


def file_names(task: Task) -> dict[str, str]:
    """Returns test split → name of the server's file; {} for a task without a server."""
    if task.suite == OTHER:
        return {}
    if task.suite == "superglue":
        splits = [split.replace("validation", "test") for split in task.splits]
        return {split: f"{task.folder}.jsonl" for split in splits}
    return _GLUE_FILES.get(task.name, {"test": f"{task.folder}.tsv"})


def server_lines(task: Task, rows: Sequence[Row], predictions: Sequence[Any]) -> list[str]:
    """Returns the lines of a server's file.

    The server wants an answer for every row, so None becomes the first class, or 0.
    """
    if task.kind == "answers":
        return [json.dumps(passage) for passage in _multirc(rows, predictions)]

    lines = []
    if task.suite == "glue":
        lines.append("index\tprediction")
    for row, prediction in zip(rows, predictions, strict=True):
        index = row["idx"]
        if task.suite == "glue":
            lines.append(f"{index}\t{_glue_value(task, prediction)}")
            continue
        # ReCoRD's index is (passage, query).
        if isinstance(index, tuple):
            index = index[-1]
        lines.append(json.dumps({"idx": index, "label": _superglue_value(task, prediction)}))
    return lines


def _glue_value(task: Task, value: Any) -> str:
    if task.kind == "regression":
        # STS-B's scores go from 0 to 5.
        return f"{min(max(value or 0.0, 0.0), 5.0):.3f}"
    if task.name in _NAMED and task.labels:
        return task.labels[value or 0]
    return str(value or 0)


def _superglue_value(task: Task, value: Any) -> Any:
    if task.kind == "entities":
        return value or ""
    if task.kind == "choice" or task.labels is None:
        return value or 0
    name = task.labels[value or 0]
    return name.lower() if task.labels == ("False", "True") else name


def _multirc(rows: Sequence[Row], predictions: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns MultiRC's passages, each with its questions and their answers."""
    passages: dict[Any, dict[Any, list[dict]]] = {}
    for row, value in zip(rows, predictions, strict=True):
        passage, question, answer = row["idx"]
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": value or 0})

    entries = []
    for passage, questions in passages.items():
        listed = [{"idx": number, "answers": answers} for number, answers in questions.items()]
        entries.append({"idx": passage, "passage": {"questions": listed}})
    return entries


def write_submission(
    folder: pathlib.Path, suite: str, files: Mapping[str, Iterable[str]]
) -> tuple[pathlib.Path, list[str]]:
    """Write submission.zip with the server's files in its order.

    Args:
        files: name of a server's file → its lines.

    Returns:
        The path, and the names of the files that the server wants and that are missing.
    """
    wanted: list[str] = []
    for task in SUITES[suite]:
        wanted.extend(file_names(task).values())

    path = folder / "submission.zip"
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in wanted:
            if name in files:
                # ZipInfo has a fixed date, so the same predictions give the same file.
                content = "\n".join(files[name]) + "\n"
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path, [name for name in wanted if name not in files]

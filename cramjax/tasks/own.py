"""Reads a task file: a task of one's own, as files, columns and a kind of head, without code."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from cramjax.errors import UserError
from cramjax.glue.tasks import OTHER, Task
from cramjax.tasks import answers, retrieval

# Head in a task file → (kind of task, number of text columns, metrics; the first one is reported).
_HEADS: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "classification": ("classification", (1, 2), ("accuracy", "macro_f1", "f1", "matthews")),
    "regression": ("regression", (1, 2), ("pearson", "spearman")),
    "tags": ("tags", (1,), ("f1", "precision", "recall", "accuracy")),
    "answers": ("span", (2,), answers.METRICS_V1),
    "embeddings": ("embeddings", (2, 3), retrieval.CORRELATIONS),
    "text": ("text", (1, 2), ("exact_match", "f1")),
}
# Further metrics of answers, for data with questions that have none.
_OF_UNANSWERED = tuple(name for name in answers.METRICS_V2 if name not in answers.METRICS_V1)
_KEYS = (
    *("name", "head", "train", "validation", "test", "text", "validation_text", "label", "labels"),
    "metric",
)
_REQUIRED = ("head", "train", "validation", "text", "label")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTask(Task):
    """A task that a file describes.

    Attributes:
        path: of the task file, for messages.
        files: split → its file, as the task file names it.
        columns: of the texts.
        pair: of embeddings, the columns of the two texts that evaluation compares; () for others.
        label: column of the label; of embeddings "" for pairs that belong together.
        names: the labels by number if the file lists them; None where the data say.
        chosen: the metrics that the file names; () for those of its head.
    """

    path: str
    files: Mapping[str, str] = dataclasses.field(hash=False)
    columns: tuple[str, ...]
    pair: tuple[str, ...]
    label: str
    names: tuple[str, ...] | None
    chosen: tuple[str, ...]


def is_task_file(name: str) -> bool:
    """Returns whether a name on the command line is that of a task file."""
    return name.lower().endswith((".yaml", ".yml"))


def read(path: str) -> OwnTask:
    """Returns the task that a file describes; its labels come with the data.

    Raises:
        UserError: for a missing or damaged file, an unknown key, or a value that does not fit.
    """
    values = _values(path)
    head = _text(path, values, "head")
    if head not in _HEADS:
        raise UserError(f"{path}: head={head!r:.80} is none of {', '.join(_HEADS)}")
    kind, n_texts, _ = _HEADS[head]
    known = _known_metrics(values, head)
    texts = _texts(path, values, "text")
    if len(texts) not in n_texts:
        wanted = " or ".join(map(str, n_texts))
        raise UserError(f"{path}: text names {len(texts)} columns where {head} takes {wanted}")
    pair = _pair(path, values, texts)

    chosen = _metrics(path, values, head)
    metrics = chosen or known[:1]
    name = _text(path, values, "name", pathlib.Path(path).stem)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"{path}: name={name!r:.80} must be of letters, digits, - and _")
    # Those of a classification depend on its labels.
    further = () if kind == "classification" else known
    # The names that a T5 reads and a finetuned model notes. An embedding is of any text.
    fields = {"span": ("question", "context"), "embeddings": ("text",)}.get(kind, texts)
    names = _texts(path, values, "labels") if "labels" in values else None
    if names and kind not in ("classification", "tags"):
        raise UserError(f"{path}: labels: {head} has none; leave the key out")
    files = {
        split: _text(path, values, split)
        for split in ("train", "validation", "test")
        if split in values
    }
    label = ""
    if "label" in values:
        label = _text(path, values, "label")
    return OwnTask(
        suite=OTHER,
        name=name,
        folder=name,
        tfds="",
        fields=fields,
        labels=None,
        metrics=tuple(dict.fromkeys((*metrics, *further))),
        headline=metrics[:1],
        sizes={},
        kind=kind,
        path=path,
        files=files,
        columns=texts,
        pair=pair,
        label=label,
        names=names,
        chosen=chosen,
    )


def _known_metrics(values: Mapping[str, Any], head: str) -> tuple[str, ...]:
    """Returns the metrics of a head; those of embeddings depend on whether pairs have labels."""
    if head == "embeddings" and "label" not in values:
        return retrieval.RANKS
    return _HEADS[head][2]


def _pair(path: str, values: Mapping[str, Any], texts: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns that an evaluation of embeddings compares; () for other heads."""
    head = values["head"]
    if head != "embeddings":
        if "validation_text" in values:
            raise UserError(f"{path}: validation_text: {head} has none; leave the key out")
        return ()
    if "validation_text" not in values:
        return tuple(texts[:2])
    pair = _texts(path, values, "validation_text")
    if len(pair) != 2:
        raise UserError(f"{path}: validation_text names {len(pair)} columns; give two")
    return pair


def _metrics(path: str, values: Mapping[str, Any], head: str) -> tuple[str, ...]:
    """Returns the metrics that a task file names; () if it names none."""
    if "metric" not in values:
        return ()
    known = _known_metrics(values, head)
    if head == "answers":
        known = answers.METRICS_V1 + _OF_UNANSWERED
    metrics = _texts(path, values, "metric")
    for metric in metrics:
        if metric not in known:
            raise UserError(f"{path}: metric={metric!r:.80}: {head} has {', '.join(known)}")
    return metrics


def _values(path: str) -> dict[str, Any]:
    """Returns the content of a task file, whose keys are known."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--task {path}: not readable ({reason})") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split()):.200})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; it needs {', '.join(_REQUIRED)}")

    for key in values:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}"
            raise UserError(f"{path}: {key!s:.80}: no such key; {hint}")
    for key in _REQUIRED:
        # Pairs that belong together need no label.
        is_needed = key != "label" or values.get("head") != "embeddings"
        if is_needed and key not in values:
            raise UserError(f"{path}: has no {key}; it needs {', '.join(_REQUIRED)}")
    return values


def _text(path: str, values: Mapping[str, Any], key: str, default: str = "") -> str:
    value = values.get(key, default)
    # A column may be named by a number.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: {key}={value!r:.80} is no text; give a name")
    return value


def _texts(path: str, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Returns the texts of a key that holds one or a list."""
    value = values[key]
    items = value if isinstance(value, list) else [value]
    return tuple(_text(path, {key: item}, key) for item in items)

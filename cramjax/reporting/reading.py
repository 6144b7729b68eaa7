"""Reads what a run has left so far, and bears whatever is missing, damaged, partial or old.

A run that goes on may write while it is read, so a file may end within a line. What cannot be read
is left out and said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.errors import UserError
from cramjax.files import MAX_JSON_BYTES, read_content
from cramjax.reporting.words import is_number

MAX_LINES_BYTES = 1 << 30
"""The largest metrics.jsonl that is read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of a run.

    Attributes:
        folder: its path.
        name: of the run on the page.
        config: content of config.json; {} without one, as all of these.
        environment: content of environment.json.
        summary: content of summary.json if it describes the last step, else {}.
        lines: of metrics.jsonl.
        starts: lines of history.jsonl.
        samples: lines of samples.jsonl.
        written_s: time of the last line of the metrics, in seconds since 1970; None without one.
        problems: sentences on what could not be read.
    """

    folder: pathlib.Path
    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]
    lines: Sequence[dict[str, Any]]
    starts: Sequence[dict[str, Any]]
    samples: Sequence[dict[str, Any]]
    written_s: float | None
    problems: Sequence[str]

    @property
    def is_finished(self) -> bool:
        """True if the run has come to its end."""
        return bool(self.summary)


def read_run(folder: pathlib.Path, name: str) -> RunFiles:
    """Returns the files of the run in `folder`."""
    problems: list[str] = []
    lines = read_lines(folder / "metrics.jsonl", problems)
    summary = read_object(folder / "summary.json", problems)
    last = max((line["step"] for line in lines), default=0)
    # A run that goes on with a larger budget still has the summary of the smaller one.
    steps = summary.get("steps")
    if is_number(steps) and steps < last:
        summary = {}

    return RunFiles(
        folder=folder,
        name=name,
        config=read_object(folder / "config.json", problems),
        environment=read_object(folder / "environment.json", problems),
        summary=summary,
        lines=lines,
        starts=read_lines(folder / "history.jsonl", problems),
        samples=read_lines(folder / "samples.jsonl", problems),
        written_s=_written_s(folder / "metrics.jsonl"),
        problems=problems,
    )


def stamp(paths: Sequence[pathlib.Path]) -> tuple[tuple[int, int], ...]:
    """Returns size and time of each file; both are 0 for one that is missing."""
    stamps = []
    for path in paths:
        try:
            # A file system of the network says the size of now only where a file is opened.
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            stamps.append((0, 0))
            continue
        found = os.fstat(number)
        os.close(number)
        stamps.append((found.st_size, found.st_mtime_ns))
    return tuple(stamps)


def read_object(path: pathlib.Path, problems: list[str]) -> dict[str, Any]:
    """Returns the JSON object in a file; {} and a problem if there is another thing in it."""
    value = read_value(path, problems)
    if isinstance(value, dict):
        return value
    if value is not None:
        problems.append(f"{path}: is no JSON object and is left out")
    return {}


def read_value(path: pathlib.Path, problems: list[str]) -> Any:
    """Returns the JSON in a file; None without a file, or with a problem."""
    content = _content(path, MAX_JSON_BYTES, problems)
    if content is None:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        problems.append(f"{path}: is damaged and is left out")
        return None


def read_lines(path: pathlib.Path, problems: list[str]) -> list[dict[str, Any]]:
    """Returns the JSON objects with a step, one a line, in order.

    The last line may be one that is being written. Others that are damaged are counted.
    """
    content = _content(path, MAX_LINES_BYTES, problems)
    if content is None:
        return []
    lines = []
    n_damaged = 0
    texts = content.decode("utf-8", errors="replace").split("\n")
    for number, text in enumerate(texts, start=1):
        line = None
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
        if isinstance(line, dict) and _is_count(line.get("step")):
            lines.append(line)
        elif text.strip() and number < len(texts):
            n_damaged += 1
    if n_damaged:
        problems.append(f"{path}: {n_damaged} damaged line(s) are left out")
    return lines


def _is_count(value: Any) -> bool:
    return type(value) is int and is_number(value)


def read_text(path: pathlib.Path, problems: list[str]) -> str | None:
    """Returns the text in a file; None without a file, or with a problem."""
    content = _content(path, MAX_JSON_BYTES, problems)
    return None if content is None else content.decode("utf-8", errors="replace")


def _content(path: pathlib.Path, most_bytes: int, problems: list[str]) -> bytes | None:
    """Returns the content of a regular file; None without one, or with a problem."""
    if not os.path.exists(path):
        return None
    try:
        return read_content(path, "it is left out", most_bytes=most_bytes)
    except UserError as error:
        problems.append(str(error))
        return None


def _written_s(path: pathlib.Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None

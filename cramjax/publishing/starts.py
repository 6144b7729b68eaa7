"""Reads from history.jsonl which starts of a run a checkpoint has its training from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """One start of a run.

    Attributes:
        step: the step that it went on from; 0 for the first.
        command: the command line.
        changes: key → (value before, value now), of the keys that changed at `step`.
        fingerprint: of the dataset, or None if the line does not say.
    """

    step: int
    command: str
    changes: Mapping[str, tuple[Any, Any]]
    fingerprint: str | None


def read(folder: pathlib.Path, step: int | None) -> list[Start]:
    """Returns the starts that the checkpoint of `step` (None: the newest) has its training from.

    They are in the order of their steps. Damaged lines are left out. A start from an earlier step
    than the one before has thrown away what that one had trained.
    """
    path = folder / "history.jsonl"
    if not path.is_file():
        return []

    starts: list[Start] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        start = _parse(line)
        if start is None:
            continue
        while starts and starts[-1].step >= start.step:
            starts.pop()
        starts.append(start)
    return [start for start in starts if step is None or start.step < step]


def _parse(line: str) -> Start | None:
    """Returns the start in a line, or None if the line is damaged."""
    with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError, KeyError):
        entry = json.loads(line)
        step, command = entry["step"], entry["command"]
        changes = {}
        for key, (before, now) in entry["changes"].items():
            changes[key] = (before, now)
        fingerprint = entry["dataset"].get("fingerprint")
        if type(step) is int and isinstance(command, str):
            return Start(step=step, command=command, changes=changes, fingerprint=fingerprint)
    return None

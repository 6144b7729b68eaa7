"""The sections on how runs were made: configuration, environment, and how to repeat them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.reporting.blocks import Block, Cell, Code, Note, Section, Table, by_run, text_of
from cramjax.reporting.reading import RunFiles
from cramjax.reporting.words import hardware


def sections(runs: Sequence[RunFiles]) -> list[Section]:
    """Returns the sections on how runs were made: configuration, environment, commands."""
    if not runs:
        return []
    return [
        Section(name="configuration", title="Configuration", blocks=_configuration(runs)),
        Section(name="environment", title="Environment", blocks=[_environments(runs)]),
        Section(name="reproduce", title="Reproduce", blocks=_commands(runs)),
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key → value of nested settings."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def _configuration(runs: Sequence[RunFiles]) -> list[Block]:
    every = [_flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for values in every for key in values))
    differing, all_rows = [], []
    for key in keys:
        texts = [_setting(values, key) for values in every]
        is_marked = len(set(texts)) > 1
        row = [Cell(text=key), *(Cell(text=text, mark=is_marked) for text in texts)]
        all_rows.append(row)
        if is_marked:
            differing.append(row)

    names = [run.name for run in runs]
    blocks: list[Block] = []
    if len(runs) > 1:
        if differing:
            blocks.append(by_run("Keys that differ", names, differing))
        else:
            blocks.append(Note(text="All runs have the same configuration."))
    blocks.append(by_run("All keys", names, all_rows, is_folded=True))
    for run in runs:
        blocks += _changes(run)
    return blocks


def _setting(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "(no such key)"


def _changes(run: RunFiles) -> list[Block]:
    """Returns what changed between the starts of a run."""
    rows = []
    for start in run.starts:
        changes = start.get("changes")
        for key, both in (changes if isinstance(changes, dict) else {}).items():
            before, now = both if isinstance(both, list) and len(both) == 2 else ("", both)
            cells = [f"{start['step']:,}", key, str(before), str(now)]
            rows.append([Cell(text=text, mark=True) for text in cells])
    if not rows:
        return []
    columns = ["from step", "key", "before", "then"]
    title = f"{run.name}: changed while it went on"
    return [Table(title=title, columns=columns, rows=rows)]


def _environments(runs: Sequence[RunFiles]) -> Table:
    every = []
    for run in runs:
        environment = run.environment
        values = {
            "hardware": hardware(environment) if environment else "",
            **{key: environment.get(key) for key in ("platform", "python", "git", "started")},
            "dataset": environment.get("dataset"),
        }
        for part in ("packages", "flags"):
            listed = environment.get(part)
            values |= listed if isinstance(listed, dict) else {}
        values["starts"] = len(run.starts) or None
        every.append(values)

    names = [run.name for run in runs]
    rows = []
    for key in dict.fromkeys(key for values in every for key in values):
        texts = [text_of(values.get(key)) for values in every]
        if any(texts):
            is_marked = len(set(texts)) > 1 and key != "started"
            rows.append([Cell(text=key), *(Cell(text=text, mark=is_marked) for text in texts)])
    return by_run("Where it ran", names, rows)


def _commands(runs: Sequence[RunFiles]) -> list[Block]:
    blocks: list[Block] = []
    for run in runs:
        commands = [start["command"] for start in run.starts if start.get("command")]
        commands = commands or [run.environment.get("command") or "(no command is noted)"]
        revision = run.environment.get("git")
        lines = [f"# revision {revision}"] if revision else []
        lines += list(dict.fromkeys(map(str, commands)))
        blocks.append(Code(title=run.name, text="\n".join(lines)))
    return blocks

"""The seconds of runs by kind, and what they cost at a price an hour."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.reporting.blocks import Bars, Block, Cell, Note, Table
from cramjax.reporting.words import is_number

KINDS: tuple[str, ...] = (
    "steps",
    "compilation",
    "evaluation",
    "saving",
    "waiting for data",
    "growth",
    "other",
)
# Kind → key of a summary and of the lines of evaluations.
_NOTED = {
    "compilation": "compile_s",
    "evaluation": "eval_s",
    "saving": "save_s",
    "waiting for data": "data_wait_s",
    "growth": "growth_s",
}

Line = Mapping[str, Any]


def seconds(values: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, float]:
    """Returns the seconds of a run by kind.

    A run that goes on has no summary. Up to its latest evaluation the kinds are those that the
    evaluation noted. After it, steps are taken from the rates of the lines, and the rest is
    "other". So are kinds that files of old versions do not name.

    Args:
        values: the figures of the run, named as in summary.json.
        lines: of the metrics.
    """
    elapsed_s = values.get("elapsed_s")
    if not is_number(elapsed_s):
        return {}

    result = dict.fromkeys(KINDS, 0.0)
    goodput = values.get("goodput")
    if is_number(goodput):
        result |= _noted(values)
        result["waiting for data"] = _known(values, "data_wait_fraction") * elapsed_s
        result["steps"] = goodput * elapsed_s
    else:
        since = _latest_note(lines)
        result |= _noted(since)
        until_then = max(0.0, since["elapsed_s"] - sum(result.values()))
        later = min(elapsed_s - since["elapsed_s"], _seconds_of_steps(lines, since))
        result["steps"] = until_then + max(0.0, later)
    result["other"] = max(0.0, elapsed_s - sum(result.values()))
    return result


def _noted(values: Mapping[str, Any]) -> dict[str, float]:
    return {kind: _known(values, key) for kind, key in _NOTED.items()}


def _known(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    return value if is_number(value) else 0.0


def _latest_note(lines: Sequence[Line]) -> Line:
    """Returns the latest line with seconds by kind; that of the start without one."""
    keys = (*_NOTED.values(), "elapsed_s", "tokens")
    for line in reversed(lines):
        if all(is_number(line.get(key)) for key in keys):
            return line
    return {"step": 0, "tokens": 0, "elapsed_s": 0.0}


def _seconds_of_steps(lines: Sequence[Line], since: Line) -> float:
    """Returns the seconds of the steps after a line, by the rates of the train lines."""
    train = [line for line in lines if line["step"] > since["step"] and _has_rate(line)]
    total = 0.0
    for before, now in itertools.pairwise([since, *train]):
        total += max(0.0, now["tokens"] - before["tokens"]) / now["tokens_per_s"]
    return total


def _has_rate(line: Line) -> bool:
    rate = line.get("tokens_per_s")
    return is_number(rate) and rate > 0 and is_number(line.get("tokens")) and "loss" in line


def blocks(
    runs: Sequence[tuple[str, Mapping[str, Any], Sequence[Line]]], price: float | None
) -> list[Block]:
    """Returns the chart and table of where time and money went.

    Args:
        runs: (name, figures as in summary.json, lines of the metrics) of each run.
        price: of an hour, in any currency; None leaves costs out.
    """
    known = []
    for number, (name, values, lines) in enumerate(runs):
        spent = seconds(values, lines)
        if spent:
            known.append((number, name, spent))
    if not known:
        return []

    parts = {}
    for kind in KINDS:
        values = [round(spent[kind], 3) for *_, spent in known]
        if any(values):
            parts[kind] = values
    kinds = list(parts)
    said = []
    for _, name, spent in known:
        total = sum(spent.values()) or 1.0
        shares = [f"{kind} {spent[kind] / total:.0%}" for kind in kinds if spent[kind] > 0]
        said.append(f"{name}: {', '.join(shares)}.")

    result: list[Block] = [
        Bars(
            title="Where the seconds went",
            about=" ".join(said[:4]),
            label="seconds",
            names=[name for _, name, _ in known],
            parts=parts,
            runs=[number for number, *_ in known],
        ),
        _table(known, kinds, price),
    ]
    if price is None:
        result.append(Note(text="Give --price, the price of an hour, to see what it cost."))
    return result


def _table(
    known: Sequence[tuple[int, str, dict[str, float]]], kinds: Sequence[str], price: float | None
) -> Table:
    columns = ["run", *kinds, "all"]
    title = "Seconds by kind"
    if price is not None:
        columns += ["hours", "cost", "of it, steps"]
        title += f", and cost at {price:g} an hour"
    rows = []
    for _, name, spent in known:
        total = sum(spent.values())
        numbers = [spent[kind] for kind in kinds] + [total]
        row = [Cell(text=name), *(Cell(text=f"{x:,.1f}", value=round(x, 3)) for x in numbers)]
        if price is not None:
            costs = (total / 3600 * price, spent["steps"] / 3600 * price)
            row.append(Cell(text=f"{total / 3600:,.3g}", value=total / 3600))
            row += [Cell(text=f"{cost:,.3g}", value=cost) for cost in costs]
        rows.append(row)
    return Table(title=title, columns=columns, rows=rows, row_runs=[run for run, *_ in known])

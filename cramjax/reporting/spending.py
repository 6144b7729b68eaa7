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
_MEASURED = {"compilation": "compile_s", "evaluation": "eval_s", "saving": "save_s"}

Line = Mapping[str, Any]


def seconds(values: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, float]:
    """Returns the seconds of a run by kind.

    A run that goes on has no summary; its steps are taken from the rates of its lines, and all the
    rest is "other". So are kinds that summaries of old versions do not name.

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
        result["steps"] = goodput * elapsed_s
        for kind, key in _MEASURED.items():
            result[kind] = _known(values, key)
        result["growth"] = _known(values, "growth_s")
        result["waiting for data"] = _known(values, "data_wait_fraction") * elapsed_s
    else:
        result["steps"] = min(elapsed_s, _seconds_of_steps(lines))
    result["other"] = max(0.0, elapsed_s - sum(result.values()))
    return result


def _known(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    return value if is_number(value) else 0.0


def _seconds_of_steps(lines: Sequence[Line]) -> float:
    train = [line for line in lines if is_number(line.get("tokens_per_s")) and "loss" in line]
    total = 0.0
    first = {"tokens": 0}
    for before, now in itertools.pairwise([first, *train]):
        if now["tokens_per_s"] > 0 and is_number(now.get("tokens")):
            total += max(0.0, now["tokens"] - before.get("tokens", 0)) / now["tokens_per_s"]
    return total


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
            about=" ".join(said),
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

"""The sections about compressions: score against size and latency, with Pareto fronts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cramjax import pareto
from cramjax.reporting.blocks import (
    Axis,
    Block,
    Cell,
    Cloud,
    Point,
    Scatter,
    Section,
    Table,
    number,
)
from cramjax.reporting.words import is_number, size

COSTS = {
    "bytes": "bytes on disk",
    "nonzero": "parameters that are not zero",
    "latency": "latency of one example, ms (p50)",
}
"""What a compressed model costs → label of its axis; `tools.compress` draws the same."""

_COLUMNS = ("model", "pruned", "bits", "size", "not zero", "ms", "score", "all seeds", "front")

Entry = Mapping[str, Any]


def section(name: str, entries: Sequence[Any], place: int) -> Section | None:
    """Returns the section about the entries of a pareto.json; None without any sound one.

    Args:
        name: of its folder.
        entries: content of the file.
        place: of the section among its kind.
    """
    sound = [entry for entry in entries if _is_sound(entry)]
    if not sound:
        return None
    blocks: list[Block] = [_chart(sound, cost) for cost in COSTS if _costs(sound, cost)]
    blocks.append(_table(sound))
    left_out = len(entries) - len(sound)
    note = f" {left_out} damaged entries are left out." if left_out else ""
    return Section(
        name=f"compression-{place}",
        title=f"Compression {name}",
        blocks=blocks,
        intro=f"Each point is one model, share of pruning and number of bits.{note}",
    )


def _is_sound(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    numbers = all(is_number(entry.get(key)) for key in ("prune", "bits", "bytes", "value"))
    return numbers and isinstance(entry.get("model"), str) and isinstance(entry.get("metric"), str)


def cost_of(entry: Entry, cost: str) -> float | None:
    """Returns what an entry costs, `cost` being a key of `COSTS`; None if it does not say."""
    value: Any = entry.get(cost)
    if cost == "latency":
        batch = value.get("batch_1") if isinstance(value, dict) else None
        value = batch.get("p50_ms") if isinstance(batch, dict) else None
    return value if is_number(value) else None


def _costs(entries: Sequence[Entry], cost: str) -> bool:
    return any(cost_of(entry, cost) is not None for entry in entries)


def better_is_lower(metric: str) -> bool:
    """Returns whether a small value of `metric` is a good one."""
    return metric.endswith("loss")


def front(entries: Sequence[Entry], cost: str, score: str = "value") -> list[bool]:
    """Returns for each entry whether it is on the Pareto front.

    Args:
        entries: of a pareto.json.
        cost: a key of `COSTS`.
        score: "value" or "loss".
    """
    is_loss = score == "loss" or (bool(entries) and better_is_lower(entries[0]["metric"]))
    sign = 1.0 if is_loss else -1.0
    return pareto.front([(cost_of(entry, cost), sign * entry[score]) for entry in entries])


def _chart(entries: Sequence[Entry], cost: str) -> Scatter:
    metric = entries[0]["metric"]
    is_on_front = front(entries, cost)
    clouds = []
    for model in dict.fromkeys(entry["model"] for entry in entries):
        points = [
            _point(entry, cost, is_best)
            for entry, is_best in zip(entries, is_on_front, strict=True)
            if entry["model"] == model and cost_of(entry, cost) is not None
        ]
        clouds.append(Cloud(name=model, points=points))

    best = [entry for entry, is_best in zip(entries, is_on_front, strict=True) if is_best]
    best.sort(key=lambda entry: cost_of(entry, cost) or 0.0)
    edge = [_point(entry, cost, True) for entry in best]
    clouds.append(Cloud(name="front of all", points=edge, is_line=True, is_context=True))
    listed = "; ".join(f"{e['model']} {e['prune']:.0%} pruned, {e['bits']} bits" for e in best[:8])
    return Scatter(
        title=f"{metric} against {COSTS[cost]}",
        about=f"On the front, from small to large: {listed}.",
        x=Axis(label=COSTS[cost], is_log=cost != "latency"),
        y=Axis(label=f"{metric}, median over seeds"),
        clouds=clouds,
    )


def _point(entry: Entry, cost: str, is_best: bool) -> Point:
    lines = [
        f"{entry['model']}: {entry['prune']:.0%} pruned, {entry['bits']} bits",
        f"{entry['metric']} {_score(entry['value'])}",
        size(entry["bytes"]),
    ]
    if is_best:
        lines.append("on the front")
    return Point(x=cost_of(entry, cost) or 0.0, y=entry["value"], lines=lines)


def _score(value: float) -> str:
    """Returns a loss or a score in percent with equally many digits in a column."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _table(entries: Sequence[Entry]) -> Table:
    rows = []
    for entry, is_best in zip(entries, front(entries, "bytes"), strict=True):
        values = entry.get("values")
        seeds = [v for v in values if is_number(v)] if isinstance(values, list) else []
        latency, nonzero = cost_of(entry, "latency"), cost_of(entry, "nonzero")
        rows.append(
            [
                Cell(text=entry["model"]),
                Cell(text=f"{entry['prune']:.0%}", value=entry["prune"]),
                Cell(text=str(entry["bits"]), value=entry["bits"]),
                Cell(text=size(entry["bytes"]), value=entry["bytes"]),
                number(nonzero, ",.0f"),
                number(latency, ".3g"),
                Cell(text=_score(entry["value"]), value=entry["value"], mark=is_best),
                Cell(text=", ".join(map(_score, seeds))),
                Cell(text=("", "yes")[is_best]),
            ]
        )
    return Table(title=f"All points; score: {entries[0]['metric']}", columns=_COLUMNS, rows=rows)

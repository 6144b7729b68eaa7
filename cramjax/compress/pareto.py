"""pareto.json and pareto.png: what is left of a model's quality at which size."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax import figures, pareto

COSTS = {"bytes": "bytes on disk", "nonzero": "parameters that are not zero"}
_LATENCY = "latency of one example, ms (p50)"
_STYLES = ("o", "s", "^", "D", "v", "P", "X")


def better_is_lower(metric: str) -> bool:
    """Whether a small value of `metric` is a good one."""
    return metric.endswith("loss")


def front(entries: Sequence[Mapping[str, Any]], cost: str, score: str = "value") -> list[bool]:
    """Whether no other of `entries` is at least as good by its `score` ("value" or "loss") and as small, and better in one of them."""
    lower = score == "loss" or (bool(entries) and better_is_lower(entries[0]["metric"]))
    return pareto.front(
        [(_cost(entry, cost), entry[score] if lower else -entry[score]) for entry in entries]
    )


def _cost(entry: Mapping[str, Any], cost: str) -> float:
    return entry["latency"]["batch_1"]["p50_ms"] if cost == "latency" else entry[cost]


def plot(entries: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draw score, and loss where it is another, against bytes, non-zero parameters and latency: a colour a model, a mark a number of bits.

    A line in a model's colour is its own front, the best it has at so much or less; the wide grey one is that of all models.
    """
    import matplotlib

    has_loss = not better_is_lower(entries[0]["metric"]) and all(
        entry["loss"] is not None for entry in entries
    )
    scores = {"value": entries[0]["metric"]} | ({"loss": "loss, nats"} if has_loss else {})
    figure = figures.new_figure(18, 6 * len(scores), dpi=110)
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    bits = sorted({entry["bits"] for entry in entries}, reverse=True)
    colours = dict(zip(models, matplotlib.colormaps["tab10"].colors * len(models), strict=False))
    marks = dict(zip(bits, _STYLES * len(bits), strict=False))
    panels = figure.subplots(len(scores), 3, squeeze=False)
    for row, (score, label) in zip(panels, scores.items(), strict=True):
        for axes, cost in zip(row, (*COSTS, "latency"), strict=True):
            _draw(axes, entries, cost, score, colours, marks)
        row[0].set_ylabel(f"{label}, median over seeds")
    legend = panels[0, -1]
    for model in models:
        legend.plot([], [], "-", color=colours[model], label=model)
    for n in bits:
        legend.plot([], [], marks[n], color="#6b6b6b", label=f"{n} bits")
    legend.legend(fontsize=9, framealpha=0.9, edgecolor="none")
    figures.save(figure, path)


def _draw(
    axes: Any, entries: Sequence[Mapping[str, Any]], cost: str, score: str, colours: Any, marks: Any
) -> None:
    """One panel: `score` against `cost`."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    _step(axes, entries, cost, score, color="#b0b0b0", linewidth=7, alpha=0.4, zorder=0)
    for model, colour in colours.items():
        own = [entry for entry in entries if entry["model"] == model]
        for n, mark in marks.items():
            at = [(_cost(entry, cost), entry[score]) for entry in own if entry["bits"] == n]
            style = {
                "color": colour,
                "marker": mark,
                "markersize": 5,
                "alpha": 0.5,
                "linestyle": "none",
            }
            if at:
                axes.plot(*zip(*at, strict=True), **style)
        _step(axes, own, cost, score, color=colour, linewidth=1.8)
    if cost != "latency":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(COSTS.get(cost, _LATENCY))
    figures.style_panel(axes)


def _step(
    axes: Any, entries: Sequence[Mapping[str, Any]], cost: str, score: str, **style: Any
) -> None:
    """Draw the front of `entries`."""
    on = front(entries, cost, score)
    edge = sorted(
        (_cost(entry, cost), entry[score])
        for entry, is_on in zip(entries, on, strict=True)
        if is_on
    )
    if edge:
        axes.step(*zip(*edge, strict=True), where="post", **style)

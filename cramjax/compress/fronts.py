"""The picture of compressed models: quality against size and latency, with Pareto fronts."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cramjax import figures
from cramjax.reporting.compressions import COSTS, better_is_lower, cost_of, front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#6b6b6b"
_LIGHT_GREY = "#b0b0b0"


def plot(entries: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draw the score against bytes, non-zero parameters and latency.

    A second row of panels has the loss, unless the score is the loss. Each model has a colour,
    each number of bits a mark. A line in a model's colour is the model's own front; the wide grey
    line is the front of all models.
    """
    metric = entries[0]["metric"]
    labels = {"value": metric}
    if not better_is_lower(metric) and all(entry["loss"] is not None for entry in entries):
        labels["loss"] = "loss, nats"

    models = list(dict.fromkeys(entry["model"] for entry in entries))
    bits = sorted({entry["bits"] for entry in entries}, reverse=True)
    # "C0", "C1", … are matplotlib's colours; after the last the first comes again.
    colours = {model: f"C{number}" for number, model in enumerate(models)}
    marks = dict(zip(bits, _MARKS * len(bits), strict=False))

    figure = figures.new_figure(18, 6 * len(labels), dpi=110)
    panels = figure.subplots(len(labels), 3, squeeze=False)
    for row, (score, label) in zip(panels, labels.items(), strict=True):
        for axes, cost in zip(row, COSTS, strict=True):
            _draw(axes, entries, cost, score, colours, marks)
        row[0].set_ylabel(f"{label}, median over seeds")

    _draw_legend(panels[0, -1], colours, marks)
    figures.save(figure, path)


def _draw(
    axes: Axes,
    entries: Sequence[Mapping[str, Any]],
    cost: str,
    score: str,
    colours: Mapping[str, str],
    marks: Mapping[int, str],
) -> None:
    """Draw one panel: `score` against `cost`."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    _draw_front(axes, entries, cost, score, color=_LIGHT_GREY, linewidth=7, alpha=0.4, zorder=0)
    for model, colour in colours.items():
        of_model = [entry for entry in entries if entry["model"] == model]
        for entry in of_model:
            axes.plot(
                [cost_of(entry, cost) or 0.0],
                [entry[score]],
                color=colour,
                marker=marks[entry["bits"]],
                markersize=5,
                alpha=0.5,
                linestyle="none",
            )
        _draw_front(axes, of_model, cost, score, color=colour, linewidth=1.8)

    if cost != "latency":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(COSTS[cost])
    figures.style_panel(axes)


def _draw_front(
    axes: Axes, entries: Sequence[Mapping[str, Any]], cost: str, score: str, **style: Any
) -> None:
    """Draw the front of `entries` as steps."""
    edge = []
    for entry, is_on_front in zip(entries, front(entries, cost, score), strict=True):
        if is_on_front:
            edge.append((cost_of(entry, cost), entry[score]))
    if edge:
        costs, scores = zip(*sorted(edge), strict=True)
        axes.step(costs, scores, where="post", **style)


def _draw_legend(axes: Axes, colours: Mapping[str, str], marks: Mapping[int, str]) -> None:
    for model, colour in colours.items():
        axes.plot([], [], "-", color=colour, label=model)
    for bits, mark in marks.items():
        axes.plot([], [], mark, color=_GREY, label=f"{bits} bits")
    axes.legend(fontsize=9, framealpha=0.9, edgecolor="none")

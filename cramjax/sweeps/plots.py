"""The picture of a sweep: sweep.png."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cramjax import figures, pareto
from cramjax.sweeps import labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"params": "parameters", "flops": "training FLOPs", "elapsed_s": "time of training"}
"""Cost in the summary → label of the axis."""

LOG_FROM = 3.0
"""Largest over smallest cost from which an axis is logarithmic."""

FRONT_COLOUR = "#6b6b6b"
LEGEND_ROWS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A point in the picture.

    Attributes:
        label: name of its setting; all seeds of a setting have one colour.
        summary: the summary of a finished run, else None.
        curve: its evaluations, with `eval_loss` in nats, `elapsed_s` and `flops`.
    """

    label: str
    summary: Mapping[str, Any] | None
    curve: Sequence[Mapping[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Mark:
    """A finished point in one panel."""

    cost: float
    loss: float
    label: str
    colour: Any


def plot(points: Sequence[Drawn], keys: str, out_png: pathlib.Path) -> None:
    """Draw a sweep to `out_png`.

    Three panels show the held-out loss (nats) against parameters, FLOPs and seconds with their
    Pareto fronts; two show its curves over FLOPs and seconds. Points on a front are filled. Among
    points with one label, the one with the median loss carries it.

    Args:
        points: the points of the sweep.
        keys: what the labels are values of.
        out_png: the file.
    """
    figure = figures.new_figure(18, 9, dpi=110)
    *panels, over_flops, over_time, legend = figure.subplots(2, 3).flat
    names = list(dict.fromkeys(point.label for point in points))
    by_label = dict(zip(names, _colours(len(names)), strict=True))

    placed = []
    for axes, cost in zip(panels, PANELS, strict=True):
        placed.append(_draw_front(axes, points, by_label, cost))
    _draw_curves(over_flops, points, by_label, "flops")
    _draw_curves(over_time, points, by_label, "elapsed_s")
    _draw_legend(legend, by_label, keys)
    for axes in (*panels, over_flops, over_time):
        axes.set_ylabel("held-out loss, nats per predicted token")
        figures.style_panel(axes)

    # Labels are placed in pixels, which are known once the figure has been laid out.
    figure.draw_without_rendering()
    for axes, (marks, edge) in zip(panels, placed, strict=True):
        labels.place(axes, marks, edge)
    figures.save(figure, out_png)


def _colours(n: int) -> list[Any]:
    """Returns `n` colours that differ."""
    import matplotlib

    if n <= 10:
        palette = matplotlib.colormaps["tab10"]
        return [palette(place) for place in range(n)]
    # Both ends of the map are too dark to tell apart.
    rainbow = matplotlib.colormaps["turbo"]
    return [rainbow(0.05 + 0.9 * place / (n - 1)) for place in range(n)]


def _draw_front(
    axes: Axes, points: Sequence[Drawn], colours: Mapping[str, Any], cost: str
) -> tuple[list[labels.Mark], list[tuple[float, float]]]:
    """Draw one panel: the points, the front as steps, and the scale of the axis.

    Returns:
        The marks that get labels, and the corners of the front.
    """
    marks = _marks(points, colours, cost)
    name = PANELS[cost]
    if cost == "elapsed_s":
        scale, unit = _time_unit([mark.cost for mark in marks])
        marks = [dataclasses.replace(mark, cost=mark.cost / scale) for mark in marks]
        name = f"{name}, {unit}"

    on_front = pareto.front([(mark.cost, mark.loss) for mark in marks])
    front = [mark for mark, is_on in zip(marks, on_front, strict=True) if is_on]
    edge = sorted((mark.cost, mark.loss) for mark in front)
    if edge:
        xs, ys = zip(*edge, strict=True)
        axes.step(xs, ys, where="post", color=FRONT_COLOUR, linewidth=1.2, zorder=1)
    for mark, is_on in zip(marks, on_front, strict=True):
        fill = mark.colour if is_on else "white"
        axes.plot(mark.cost, mark.loss, "o", markersize=7, color=mark.colour, markerfacecolor=fill)

    axes.set_xlabel(name)
    axes.set_title("filled: on the Pareto front", fontsize=9, color=FRONT_COLOUR, loc="left")
    _set_scale(axes, [mark.cost for mark in marks], has_prefixes=cost != "elapsed_s")
    axes.margins(y=0.15)
    labelled = [(mark.cost, mark.loss, mark.label) for mark in _medians(marks)]
    return labelled, edge


def _marks(points: Sequence[Drawn], colours: Mapping[str, Any], cost: str) -> list[_Mark]:
    """Returns a mark for each finished point with a finite cost and loss."""
    marks = []
    for point in points:
        summary = point.summary or {}
        x = summary.get(cost)
        loss = summary.get("eval_loss")
        if x is not None and loss is not None and math.isfinite(x) and math.isfinite(loss):
            colour = colours[point.label]
            marks.append(_Mark(cost=x, loss=loss, label=point.label, colour=colour))
    return marks


def _medians(marks: Sequence[_Mark]) -> list[_Mark]:
    """Returns for each label the mark with the (lower) median loss."""
    of_label: dict[str, list[_Mark]] = {}
    for mark in marks:
        of_label.setdefault(mark.label, []).append(mark)
    medians = []
    for same in of_label.values():
        by_loss = sorted(same, key=lambda mark: mark.loss)
        medians.append(by_loss[(len(same) - 1) // 2])
    return medians


def _time_unit(values: Sequence[float]) -> tuple[float, str]:
    """Returns seconds of the unit that keeps the numbers of an axis short, and its name."""
    largest = max(values, default=0.0)
    if largest >= 7200:
        return 3600.0, "hours"
    if largest >= 180:
        return 60.0, "minutes"
    return 1.0, "seconds"


def _set_scale(axes: Axes, values: Sequence[float], *, has_prefixes: bool) -> None:
    """Make the axis logarithmic if `values` lie far apart, with room for labels at both ends.

    With `has_prefixes` the ticks have prefixes of units, as "2 M".
    """
    from matplotlib.ticker import (
        EngFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        StrMethodFormatter,
    )

    low = min(values, default=1.0)
    high = max(values, default=1.0)
    if low > 0 and high / low > LOG_FROM:
        room = (high / low) ** 0.15
        axes.set_xscale("log")
        axes.set_xlim(low / room, high * room)
        axes.xaxis.set_major_locator(LogLocator(subs=_log_ticks(high / low)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        # Values that differ by rounding alone (FLOPs under a budget of FLOPs) stay in the middle.
        room = max(0.15 * (high - low), 0.1 * abs(high) or 1.0)
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    formatter = EngFormatter(sep=" ") if has_prefixes else StrMethodFormatter("{x:g}")
    axes.xaxis.set_major_formatter(formatter)


def _log_ticks(span: float) -> tuple[float, ...]:
    """Returns the ticks of a decade: the wider the `span` of an axis, the fewer."""
    if span < 8:
        return (1, 1.5, 2, 3, 5, 7)
    return (1, 2, 5) if span < 100 else (1,)


def _draw_curves(
    axes: Axes, points: Sequence[Drawn], colours: Mapping[str, Any], cost: str
) -> None:
    """Draw held-out loss over time or FLOPs, dashed for runs that have not finished."""
    from matplotlib.ticker import EngFormatter

    curves = []
    for point in points:
        known = [line for line in point.curve if line.get(cost) is not None]
        curves.append([(line[cost], line["eval_loss"]) for line in known])
    if cost == "elapsed_s":
        scale, unit = _time_unit([x for x, _ in itertools.chain.from_iterable(curves)])
        axes.set_xlabel(f"{PANELS[cost]}, {unit}")
    else:
        scale = 1.0
        axes.set_xlabel(PANELS[cost])

    for point, curve in zip(points, curves, strict=True):
        style = "-" if point.summary else "--"
        if curve:
            axes.plot(
                [x / scale for x, _ in curve],
                [loss for _, loss in curve],
                linestyle=style,
                color=colours[point.label],
                linewidth=1.4,
                marker="o",
                markersize=3,
            )
    axes.set_xlim(left=0)
    if cost != "elapsed_s":
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))

    # The first evaluations are far above the losses that are compared.
    late = []
    for curve in curves:
        late += [loss for _, loss in curve[len(curve) // 3 :] if math.isfinite(loss)]
    if late:
        room = 0.05 * (max(late) - min(late)) + 0.01
        axes.set_ylim(min(late) - room, max(late) + room)


def _draw_legend(axes: Axes, colours: Mapping[str, Any], keys: str) -> None:
    """Draw the colours of the labels in a panel of their own."""
    axes.axis("off")
    for label, colour in colours.items():
        axes.plot([], [], "-", color=colour, marker="o", markersize=5, label=labels.shorten(label))
    columns = math.ceil(len(colours) / LEGEND_ROWS)
    axes.legend(
        title=keys, loc="upper left", ncols=columns, fontsize=9, title_fontsize=9, edgecolor="none"
    )

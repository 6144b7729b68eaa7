"""The picture of a sweep: sweep.png."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cramjax import figures, pareto

PANELS = {"params": "parameters", "flops": "training FLOPs", "elapsed_s": "time of training"}
"""Cost in the summary → label of the axis."""

LOG_FROM = 3.0
"""Largest over smallest cost from which an axis is logarithmic."""

FRONT, LEADER = "#6b6b6b", "#b0b0b0"
MAX_LABEL = 36
LEGEND_ROWS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A point in the picture; those of one `label` (seeds of one setting) have one colour.

    `summary` of a finished run, else None; `curve`: lines of its evaluations, with `eval_loss` in nats, `elapsed_s` and `flops`.
    """

    label: str
    summary: Mapping[str, Any] | None
    curve: Sequence[Mapping[str, float]]


def plot(points: Sequence[Drawn], keys: str, out_png: pathlib.Path) -> None:
    """Draw held-out loss (nats) against parameters, FLOPs and seconds with their Pareto fronts, and over both, to `out_png`.

    Points on a front are filled. `keys` says what the labels are values of. Of points with one label the one with the median loss has it.
    """
    figure = figures.new_figure(18, 9, dpi=110)
    *panels, over_flops, over_time, legend = figure.subplots(2, 3).flat
    labels = list(dict.fromkeys(point.label for point in points))
    by_label = dict(zip(labels, _colours(len(labels)), strict=True))
    colours = [by_label[point.label] for point in points]
    placed = [
        _draw_front(axes, points, colours, cost) for axes, cost in zip(panels, PANELS, strict=True)
    ]
    for axes, cost in ((over_flops, "flops"), (over_time, "elapsed_s")):
        _draw_curves(axes, points, colours, cost)
    _draw_legend(legend, by_label, keys)
    for axes in (*panels, over_flops, over_time):
        axes.set_ylabel("held-out loss, nats per predicted token")
        figures.style_panel(axes)
    figure.draw_without_rendering()  # labels are placed in pixels, which are known from here on
    for axes, (marks, edge) in zip(panels, placed, strict=True):
        _place_labels(axes, marks, edge)
    figures.save(figure, out_png)


def _colours(n: int) -> list[Any]:
    """A colour for each point, the same in all panels."""
    import matplotlib

    if n <= 10:
        return list(matplotlib.colormaps["tab10"].colors[:n])
    return [matplotlib.colormaps["turbo"](0.05 + 0.9 * place / (n - 1)) for place in range(n)]


def _draw_front(
    axes: Any, points: Sequence[Drawn], colours: Sequence[Any], cost: str
) -> tuple[list[tuple[float, float, str]], list[tuple[float, float]]]:
    """One panel: points, the front as steps, the scale of the axis. Returns the marks (x, y, label) and the (x, y) of the front."""
    marks = []
    for point, colour in zip(points, colours, strict=True):
        at, loss = (point.summary or {}).get(cost), (point.summary or {}).get("eval_loss")
        if all(value is not None and math.isfinite(value) for value in (at, loss)):
            marks.append((at, loss, point.label, colour))
    if cost == "elapsed_s":
        scale, unit = _time_unit([mark[0] for mark in marks])
        marks = [(at / scale, *rest) for at, *rest in marks]
    on_front = pareto.front([mark[:2] for mark in marks])
    edge = sorted(mark[:2] for mark, on in zip(marks, on_front, strict=True) if on)
    if edge:
        axes.step(*zip(*edge, strict=True), where="post", color=FRONT, linewidth=1.2, zorder=1)
    for (at, loss, _, colour), on in zip(marks, on_front, strict=True):
        axes.plot(
            at, loss, "o", markersize=7, color=colour, markerfacecolor=colour if on else "white"
        )
    axes.set_xlabel(f"{PANELS[cost]}, {unit}" if cost == "elapsed_s" else PANELS[cost])
    axes.set_title("filled: on the Pareto front", fontsize=9, color=FRONT, loc="left")
    _scale(axes, [mark[0] for mark in marks], prefixes=cost != "elapsed_s")
    axes.margins(y=0.15)
    return [mark[:3] for mark in _medians(marks)], edge


def _medians(marks: Sequence[tuple]) -> list[tuple]:
    """Of the marks (x, y, label, …) with the same label, the one whose y is the (lower) median."""
    of_label: dict[str, list[tuple]] = {}
    for mark in marks:
        of_label.setdefault(mark[2], []).append(mark)
    return [
        sorted(same, key=lambda mark: mark[1])[(len(same) - 1) // 2] for same in of_label.values()
    ]


def _time_unit(values: Sequence[float]) -> tuple[float, str]:
    """Seconds in the unit that keeps the numbers of an axis short, and its name."""
    largest = max(values, default=0.0)
    return (
        (3600.0, "hours")
        if largest >= 7200
        else (60.0, "minutes")
        if largest >= 180
        else (1.0, "seconds")
    )


def _scale(axes: Any, values: Sequence[float], *, prefixes: bool) -> None:
    """Logarithmic where `values` lie far apart, room for labels at both ends, `prefixes` of units in the ticks (2 M)."""
    from matplotlib.ticker import (
        EngFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        StrMethodFormatter,
    )

    low, high = min(values, default=1.0), max(values, default=1.0)
    if low > 0 and high / low > LOG_FROM:
        room = (high / low) ** 0.15
        axes.set_xscale("log")
        axes.set_xlim(low / room, high * room)
        ticks = (1, 1.5, 2, 3, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 100 else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=ticks))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        # Values that are equal but for rounding (FLOPs under a budget of FLOPs) stay in the middle, as one.
        room = max(0.15 * (high - low), 0.1 * abs(high) or 1.0)
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(
        EngFormatter(sep=" ") if prefixes else StrMethodFormatter("{x:g}")
    )


def _draw_curves(axes: Any, points: Sequence[Drawn], colours: Sequence[Any], cost: str) -> None:
    """Held-out loss over time or FLOPs, dashed where the run has not finished."""
    from matplotlib.ticker import EngFormatter

    curves = [
        [(line[cost], line["eval_loss"]) for line in point.curve if line.get(cost) is not None]
        for point in points
    ]
    scale, unit = (
        _time_unit([at for curve in curves for at, _ in curve])
        if cost == "elapsed_s"
        else (1.0, "")
    )
    for point, curve, colour in zip(points, curves, colours, strict=True):
        if curve:
            at, loss = [at / scale for at, _ in curve], [loss for _, loss in curve]
            axes.plot(
                at,
                loss,
                "-" if point.summary else "--",
                color=colour,
                linewidth=1.4,
                marker="o",
                markersize=3,
            )
    axes.set_xlabel(f"{PANELS[cost]}, {unit}" if unit else PANELS[cost])
    axes.set_xlim(left=0)
    if not unit:
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    # The first evaluations are far above what the curves are compared by.
    late = [loss for curve in curves for _, loss in curve[len(curve) // 3 :] if math.isfinite(loss)]
    if late:
        room = 0.05 * (max(late) - min(late)) + 0.01
        axes.set_ylim(min(late) - room, max(late) + room)


def _draw_legend(axes: Any, colours: Mapping[str, Any], keys: str) -> None:
    """What colour is which label, in a panel of its own."""
    axes.axis("off")
    for label, colour in colours.items():
        axes.plot([], [], "-", color=colour, marker="o", markersize=5, label=_short(label))
    columns = math.ceil(len(colours) / LEGEND_ROWS)
    axes.legend(
        title=keys, loc="upper left", ncols=columns, fontsize=9, title_fontsize=9, edgecolor="none"
    )


def _short(label: str) -> str:
    """`label` at a length that fits beside a mark, its dollars no formulas."""
    cut = label if len(label) <= MAX_LABEL else label[: MAX_LABEL - 1] + "…"
    return cut.replace("$", r"\$")


def _place_labels(
    axes: Any, marks: Sequence[tuple[float, float, str]], edge: Sequence[tuple[float, float]]
) -> None:
    """Write each label beside its mark (x, y, label), where it hides the least of marks, other labels, the front and the frame."""
    renderer = axes.figure.canvas.get_renderer()
    unit = axes.figure.dpi / 72  # pixels a point
    taken = [
        _box(*axes.transData.transform((at, loss)), 10 * unit, 10 * unit) for at, loss, _ in marks
    ]
    corners = [axes.transData.transform(corner) for corner in edge]
    for (left, top), (right, bottom) in itertools.pairwise(corners):
        taken += [(left, top - unit, right, top + unit), (right - unit, bottom, right + unit, top)]
    frame = axes.get_window_extent(renderer).extents
    for at, loss, label in marks:
        text = axes.annotate(
            _short(label),
            (at, loss),
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
        )
        text.set_in_layout(False)
        size = text.get_window_extent(renderer)
        width, height = size.width + 2 * unit, size.height + 2 * unit
        x, y = axes.transData.transform((at, loss))
        places = [
            (dx, dy, _box(x + dx, y + dy, width, height))
            for dx, dy in _offsets(width / 2, height / 2, unit)
        ]
        dx, dy, box = min(places, key=lambda place: _hidden(place[2], taken, frame))
        taken.append(box)
        text.set_position((dx / unit, dy / unit))
        if max(abs(dx) - width / 2, abs(dy) - height / 2) > 12 * unit:
            leader = axes.transData.inverted().transform([(x, y), (x + dx, y + dy)])
            axes.plot(*leader.T, color=LEADER, linewidth=0.6, zorder=0)


def _offsets(half_width: float, half_height: float, unit: float) -> Iterator[tuple[float, float]]:
    """Places of a label's centre around a mark, in pixels (`unit` a point): to the right first, then farther and farther away."""
    for gap in (8 * unit, 16 * unit, 28 * unit, 44 * unit, 64 * unit, 90 * unit):
        for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            yield right * (half_width + gap), up * (half_height + gap)


def _box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _hidden(box: tuple, taken: Sequence[tuple], frame: Sequence[float]) -> float:
    """Pixels² that a label in `box` hides of boxes in `taken`, and of itself outside `frame`."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return sum(_overlap(box, other) for other in taken) + area - _overlap(box, frame)


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0

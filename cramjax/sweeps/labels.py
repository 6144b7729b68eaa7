"""Labels beside the marks of a panel, placed where they hide the least."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in pixels."""
Mark = tuple[float, float, str]
"""x, y and label, in the units of the axes."""

LEADER_COLOUR = "#b0b0b0"
MAX_LENGTH = 36
# In points.
_MARK_SIZE = 10
_GAPS = (8, 16, 28, 44, 64, 90)
_LEADER_FROM = 12
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def place(axes: Axes, marks: Sequence[Mark], edge: Sequence[tuple[float, float]]) -> None:
    """Write the label of each mark beside it.

    A label goes where it hides the least of the marks, the other labels and the front, and leaves
    the frame the least. Far from its mark it gets a leader line. The figure must have been drawn
    once, because places are in pixels.

    Args:
        axes: the panel.
        marks: marks with their labels.
        edge: corners (x, y) of the front, which is drawn as steps.
    """
    point = axes.figure.dpi / 72  # pixels
    panel = axes.get_window_extent()
    frame = (panel.x0, panel.y0, panel.x1, panel.y1)

    size = _MARK_SIZE * point
    taken = [_box(*_pixels(axes, x, y), size, size) for x, y, _ in marks]
    corners = [_pixels(axes, x, y) for x, y in edge]
    for (left, top), (right, bottom) in itertools.pairwise(corners):
        taken.append((left, top - point, right, top + point))
        taken.append((right - point, bottom, right + point, top))

    for x, y, label in marks:
        text = axes.annotate(
            shorten(label),
            (x, y),
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
        )
        text.set_in_layout(False)
        extent = text.get_window_extent()
        width = extent.width + 2 * point
        height = extent.height + 2 * point

        pixel_x, pixel_y = _pixels(axes, x, y)
        places = []
        for dx, dy in _offsets(width / 2, height / 2, point):
            places.append((dx, dy, _box(pixel_x + dx, pixel_y + dy, width, height)))
        dx, dy, box = min(places, key=lambda place: _hidden(place[2], taken, frame))
        taken.append(box)
        text.set_position((dx / point, dy / point))

        distance = max(abs(dx) - width / 2, abs(dy) - height / 2)
        if distance > _LEADER_FROM * point:
            ends = [(pixel_x, pixel_y), (pixel_x + dx, pixel_y + dy)]
            line = axes.transData.inverted().transform(ends)
            axes.plot(*line.T, color=LEADER_COLOUR, linewidth=0.6, zorder=0)


def shorten(label: str) -> str:
    """Returns `label` at a length that fits beside a mark; its dollars start no formula."""
    if len(label) > MAX_LENGTH:
        label = label[: MAX_LENGTH - 1] + "…"
    return label.replace("$", r"\$")


def _pixels(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Returns where a point in the units of the axes lies in the figure, in pixels."""
    pixel_x, pixel_y = axes.transData.transform((x, y))
    return float(pixel_x), float(pixel_y)


def _offsets(half_width: float, half_height: float, point: float) -> Iterator[tuple[float, float]]:
    """Yields places of a label's centre around a mark in pixels: to the right first, far ones last.

    A `point` is that many pixels.
    """
    for gap in _GAPS:
        for right, up in _DIRECTIONS:
            yield right * (half_width + gap * point), up * (half_height + gap * point)


def _box(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _hidden(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """Returns the pixels² that a label in `box` hides of `taken`, and of itself outside `frame`."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return sum(_overlap(box, other) for other in taken) + area - _overlap(box, frame)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0

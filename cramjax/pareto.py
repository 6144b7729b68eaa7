"""Pareto fronts: which points no other point beats in both cost and loss."""

from __future__ import annotations

import math
from collections.abc import Sequence


def front(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Whether each (cost, loss), both better when lower, lies on the Pareto front.

    A point is dominated by another that is nowhere worse and somewhere better, so equal points stand or fall together and the order
    of `points` does not matter. A point with a None or a value that is not finite is never on the front and dominates nothing.
    """
    on_front = [False] * len(points)
    best: tuple[float, float] | None = None
    for place in sorted(
        (n for n, point in enumerate(points) if _is_finite(point)), key=lambda n: points[n]
    ):
        # In order of cost, then loss, a point is on the front when its loss is a new low, or when it repeats the point that set it.
        if best is None or points[place][1] < best[1] or points[place] == best:
            on_front[place], best = True, points[place]
    return on_front


def _is_finite(point: tuple[float | None, float | None]) -> bool:
    return all(value is not None and math.isfinite(value) for value in point)

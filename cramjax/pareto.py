"""Pareto fronts: the points that no other point beats in both cost and loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float | None, float | None]
"""A cost and a loss; both are better when lower."""


def front(points: Sequence[Point]) -> list[bool]:
    """Returns for each point whether it lies on the Pareto front.

    A point dominates another if it is nowhere worse and somewhere better, so equal points are on
    the front together, and the order of `points` does not matter. A point with a None or a value
    that is not finite is never on the front and dominates nothing.
    """
    numbered = []
    for place, (cost, loss) in enumerate(points):
        if cost is not None and loss is not None and math.isfinite(cost) and math.isfinite(loss):
            numbered.append((cost, loss, place))

    # In order of cost, then loss, a point is on the front if its loss is a new low, or if it
    # repeats the point that set the low.
    on_front = [False] * len(points)
    best: tuple[float, float] | None = None
    for cost, loss, place in sorted(numbered):
        if best is None or loss < best[1] or (cost, loss) == best:
            on_front[place] = True
            best = (cost, loss)
    return on_front

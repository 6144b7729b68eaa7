"""The curves of a run from its metrics: the loss.png of a workdir and the pages share them."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.reporting.words import is_number

# How the values of several lines become one: a peak must stay, a level is a mean.
_TOGETHER = {"grad_norm": "max", "loss": "mean", "tokens_per_s": "mean", "mfu": "mean"}

TRAIN, HELD_OUT, BASELINE = "train", "held-out", "unigram baseline"
"""Names of the three curves of a chart of losses."""

LOSS = "nats per predicted token"
"""What losses are, for an axis."""

LABELS = {"tokens": "tokens", "elapsed_s": "time of training"}
"""Key of a line → label of the axis along which a run goes, without the unit."""

MOST = 2_000
"""Points of a curve: more of them no picture shows."""

Line = Mapping[str, Any]


def split(lines: Sequence[Line]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns train lines and held-out lines, each with the tokens and FLOPs that can be known.

    A held-out line without tokens gets those that the train lines have at its step. FLOPs, which
    old train lines lack, are taken from the held-out lines around them.
    """
    train = [dict(line) for line in lines if _has(line, "loss", "tokens", "elapsed_s")]
    held_out = [dict(line) for line in lines if _has(line, "eval_loss", "elapsed_s")]
    _fill(held_out, "tokens", "step", train)
    _fill(train, "flops", "tokens", held_out)
    _fill(held_out, "flops", "tokens", train)
    return train, held_out


def _has(line: Line, *keys: str) -> bool:
    return all(is_number(line.get(key)) for key in keys)


def _fill(lines: list[dict[str, Any]], key: str, by: str, known: Sequence[Line]) -> None:
    """Give `lines` the `key` that `known` lines have at the same value of `by`.

    It is a straight line between two of them and from (0, 0) on; after the last one it stays.
    """
    points = [(line[by], line[key]) for line in known if _has(line, key, by)]
    points = points or [(0.0, 0.0)]
    places, values = zip(*points, strict=True)
    for line in lines:
        if not _has(line, key) and _has(line, by):
            line[key] = at(line[by], places, values)


def at(place: float, places: Sequence[float], values: Sequence[float]) -> float:
    """Returns the value at `place` of the curve through (0, 0) and the points, which ascend."""
    after = bisect.bisect_left(places, place)
    if after == len(places):
        return values[-1]
    before_place, before = 0.0, 0.0
    if after:
        before_place, before = places[after - 1], values[after - 1]
    width = places[after] - before_place
    if width <= 0:
        return values[after]
    return before + (place - before_place) / width * (values[after] - before)


def thinned(lines: Sequence[Line], most: int) -> list[Line]:
    """Returns at most about `most` lines: neighbours become one.

    Losses and rates are means, the gradient norm is the largest, and all else is the last value.
    """
    step = -(-len(lines) // most)
    if step <= 1:
        return list(lines)
    return [_together(lines[start : start + step]) for start in range(0, len(lines), step)]


def _together(lines: Sequence[Line]) -> Line:
    one = dict(lines[-1])
    for key, how in _TOGETHER.items():
        values = [line[key] for line in lines if _has(line, key)]
        if values and how == "max":
            one[key] = max(values)
        elif values:
            one[key] = sum(values) / len(values)
    return one


def column(lines: Sequence[Line], key: str, *, n_digits: int) -> list[float | int | None]:
    """Returns the values of `key` with so many digits, None where there is no number."""
    return [_short(line.get(key), n_digits) for line in lines]


def _short(value: Any, n_digits: int) -> float | int | None:
    if not is_number(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{n_digits}g}")

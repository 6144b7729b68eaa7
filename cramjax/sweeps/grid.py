"""The points of a sweep: the cross product of grids over a recipe.

Every point is resolved before any of them runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cramjax.config.resolve import resolve
from cramjax.errors import UserError

VARIANT = "variant"
"""The grid key that stands for the recipe's argument after the colon."""

MAX_NAME = 120


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: name of its folder.
        values: the value of each grid key, as it was written.
        spec: FILE[:ARG] of the recipe.
        overrides: "key=value" for the recipe.
        config: the configuration that these give, as it comes back from JSON.
    """

    name: str
    values: dict[str, str]
    spec: str
    overrides: tuple[str, ...]
    config: dict[str, Any]

    def command(self, workdir: pathlib.Path) -> list[str]:
        """Returns the command line that trains this point in `workdir`, or goes on there."""
        command = [sys.executable, "-m", "cramjax.main", "--config", self.spec]
        flags = [f"--config.{text}" for text in self.overrides]
        return [*command, "--workdir", str(workdir), *flags]


def parse_grids(texts: Iterable[str]) -> dict[str, list[str]]:
    """Returns key → values of each "KEY=V1,V2,…"; a comma in brackets belongs to the value.

    Raises:
        UserError: for a grid that cannot be read, a second grid of a key, or an equal value.
    """
    grids: dict[str, list[str]] = {}
    for text in texts:
        key, _, listed = text.partition("=")
        values = _split(listed)
        if not key or not values or not all(values):
            raise UserError(
                f"--grid {text}: must be KEY=V1,V2,… with a value at each place "
                "and its brackets closed"
            )
        if key in grids:
            raise UserError(f"--grid {text}: {key} has a grid already; list all its values in one")
        if len(set(values)) < len(values):
            raise UserError(f"--grid {text}: a value stands there twice; leave one out")
        grids[key] = values
    return grids


def _split(listed: str) -> list[str]:
    """Returns the values between commas outside brackets; no values if brackets do not match."""
    values = [""]
    depth = 0
    for character in listed:
        depth += (character in "[({") - (character in "])}")
        if depth < 0:
            return []
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [] if depth else [value.strip() for value in values]


def points_of(
    spec: str, overrides: Sequence[str], grids: Mapping[str, Sequence[str]]
) -> list[Point]:
    """Returns the cross product of `grids` over a recipe; the last grid varies fastest.

    Args:
        spec: FILE[:ARG] of the recipe.
        overrides: "key=value" for all points.
        grids: values by key.

    Raises:
        UserError: naming the mistakes of all points at once, each with its points.
    """
    _check_keys(spec, overrides, grids)
    points: list[Point] = []
    # Mistake → names of the points that have it.
    mistakes: dict[str, list[str]] = {}
    for combination in itertools.product(*grids.values()):
        values = dict(zip(grids, combination, strict=True))
        try:
            point = _point(spec, overrides, values)
        except UserError as error:
            for mistake in _listed(error):
                mistakes.setdefault(mistake, []).append(point_name(values))
            continue
        for other in points:
            if other.config == point.config:
                names = mistakes.setdefault("the same configuration twice; leave one out", [])
                names += [other.name, point.name]
        points.append(point)

    if mistakes:
        lines = [f"{spec}: {len(mistakes)} mistake(s) in the points of the sweep:"]
        for mistake, names in mistakes.items():
            lines.append(f"  - {mistake} (in {_some(names)})")
        raise UserError("\n".join(lines))
    return points


def differ_in_text(points: Sequence[Point]) -> bool:
    """Returns whether data.max_mb='budget' may give the points different amounts of text.

    Networks and budgets differ in the text they read, so their datasets do. Losses on the held-out
    text of different datasets hardly compare.
    """
    asking = [point.config for point in points if point.config["data"]["max_mb"] == "budget"]
    decisive = ("model", "growth", "budget", "precision")
    return any(config[key] != asking[0][key] for config in asking for key in decisive)


def _point(spec: str, overrides: Sequence[str], values: dict[str, str]) -> Point:
    """Returns the point of grid `values`. Raises UserError for a wrong configuration."""
    if VARIANT in values:
        spec = f"{spec}:{values[VARIANT]}"
    further = [f"{key}={value}" for key, value in values.items() if key != VARIANT]
    all_overrides = (*overrides, *further)
    return Point(
        name=point_name(values),
        values=values,
        spec=spec,
        overrides=all_overrides,
        config=_as_json(resolve(spec, all_overrides).to_dict()),
    )


def _check_keys(spec: str, overrides: Sequence[str], grids: Mapping[str, Sequence[str]]) -> None:
    if not grids:
        raise UserError("--grid: give at least one KEY=V1,V2,…")
    if VARIANT in grids and ":" in spec:
        raise UserError(
            f"--config {spec}: has a variant and --grid {VARIANT} has others; "
            "leave out one of the two"
        )
    for text in overrides:
        key = text.partition("=")[0]
        if key in grids:
            raise UserError(
                f"--config.{text}: {key} has a --grid as well; leave out one of the two"
            )


def point_name(values: Mapping[str, str]) -> str:
    """Returns a readable folder name for grid `values`, as "variant-tiny,optimizer.lr-0.01".

    If characters are replaced or the name is cut, a hash keeps different values apart.
    """
    exact = ",".join(f"{key}-{value}" for key, value in values.items())
    safe = re.sub(r"[^A-Za-z0-9.,+_-]+", "_", exact)
    if safe == exact and len(safe) <= MAX_NAME:
        return safe
    digest = hashlib.sha256(json.dumps(dict(values)).encode()).hexdigest()[:8]
    return f"{safe[: MAX_NAME - 9]}-{digest}"


def _listed(error: UserError) -> list[str]:
    """Returns the mistakes of one configuration; `resolve` lists each on a line."""
    lines = str(error).splitlines()
    return [line.removeprefix("  - ") for line in lines if line.startswith("  - ")] or [str(error)]


def _some(names: Sequence[str]) -> str:
    """Returns the first names for a message; they hold commas themselves."""
    text = "; ".join(names[:3])
    return f"{text}; and {len(names) - 3} more" if len(names) > 3 else text


def _as_json(value: Any) -> Any:
    """Returns `value` as it comes back from a JSON file: tuples become lists."""
    return json.loads(json.dumps(value))

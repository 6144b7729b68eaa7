"""The points of a sweep: the cross product of grids over a recipe, each resolved before any of them runs."""

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
    """One run of a sweep: its folder's name, its value of each grid key as written, and the configuration these give."""

    name: str
    values: dict[str, str]
    spec: str
    overrides: tuple[str, ...]
    config: dict[str, Any]

    def command(self, workdir: pathlib.Path) -> list[str]:
        """The command line that trains this point in `workdir`, or goes on there."""
        flags = [f"--config.{text}" for text in self.overrides]
        return [
            sys.executable,
            "-m",
            "cramjax.main",
            "--config",
            self.spec,
            "--workdir",
            str(workdir),
            *flags,
        ]


def parse_grids(texts: Iterable[str]) -> dict[str, list[str]]:
    """Key → values of each "KEY=V1,V2,…"; a comma in brackets belongs to the value. Raises UserError."""
    grids: dict[str, list[str]] = {}
    for text in texts:
        key, _, listed = text.partition("=")
        values = _split(listed)
        if not key or not values or not all(values):
            raise UserError(
                f"--grid {text}: must be KEY=V1,V2,… with a value at each place and its brackets closed"
            )
        if key in grids:
            raise UserError(f"--grid {text}: {key} has a grid already; list all its values in one")
        if len(set(values)) < len(values):
            raise UserError(f"--grid {text}: a value stands there twice; leave one out")
        grids[key] = values
    return grids


def _split(listed: str) -> list[str]:
    """The values between commas outside brackets; none where brackets do not match."""
    values, depth = [""], 0
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
    """The cross product of `grids` over the recipe FILE[:ARG] with "key=value" `overrides`; the last grid varies fastest.

    Raises:
        UserError: naming the mistakes of all points at once, each with the points it is in.
    """
    _check_keys(spec, overrides, grids)
    points: list[Point] = []
    mistakes: dict[str, list[str]] = {}
    for combination in itertools.product(*grids.values()):
        values = dict(zip(grids, combination, strict=True))
        point_spec = f"{spec}:{values[VARIANT]}" if VARIANT in values else spec
        point_overrides = (
            *overrides,
            *(f"{key}={value}" for key, value in values.items() if key != VARIANT),
        )
        name = point_name(values)
        try:
            config = _as_json(resolve(point_spec, point_overrides).to_dict())
        except UserError as error:
            for mistake in _listed(error):
                mistakes.setdefault(mistake, []).append(name)
            continue
        for other in points:
            if other.config == config:
                mistakes.setdefault("the same configuration twice; leave one out", []).extend(
                    (other.name, name)
                )
        points.append(
            Point(
                name=name, values=values, spec=point_spec, overrides=point_overrides, config=config
            )
        )
    if mistakes:
        listed = "\n".join(
            f"  - {mistake} (in {_some(names)})" for mistake, names in mistakes.items()
        )
        raise UserError(f"{spec}: {len(mistakes)} mistake(s) in the points of the sweep:\n{listed}")
    return points


def _check_keys(spec: str, overrides: Sequence[str], grids: Mapping[str, Sequence[str]]) -> None:
    if not grids:
        raise UserError("--grid: give at least one KEY=V1,V2,…")
    if VARIANT in grids and ":" in spec:
        raise UserError(
            f"--config {spec}: has a variant and --grid {VARIANT} has others; leave out one of the two"
        )
    for text in overrides:
        if (key := text.partition("=")[0]) in grids:
            raise UserError(
                f"--config.{text}: {key} has a --grid as well; leave out one of the two"
            )


def point_name(values: Mapping[str, str]) -> str:
    """A readable name of a folder for grid `values`, such as "variant-tiny,optimizer.lr-0.01".

    Where characters had to be replaced or the name cut, a hash keeps different values apart.
    """
    exact = ",".join(f"{key}-{value}" for key, value in values.items())
    safe = re.sub(r"[^A-Za-z0-9.,+_-]+", "_", exact)
    if safe == exact and len(safe) <= MAX_NAME:
        return safe
    digest = hashlib.sha256(json.dumps(dict(values)).encode()).hexdigest()[:8]
    return f"{safe[: MAX_NAME - 9]}-{digest}"


def _listed(error: UserError) -> list[str]:
    """The mistakes of one configuration, apart: `resolve` lists them a line each."""
    lines = str(error).splitlines()
    return [line.removeprefix("  - ") for line in lines if line.startswith("  - ")] or [str(error)]


def _some(names: Sequence[str]) -> str:
    """Names, which hold commas themselves, for a message."""
    return "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _as_json(value: Any) -> Any:
    """`value` as it comes back from a JSON file: tuples are lists there."""
    return json.loads(json.dumps(value))

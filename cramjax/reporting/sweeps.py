"""The sections about a sweep: parallel coordinates of its grid, Pareto fronts, all its points."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from cramjax import pareto
from cramjax.reporting import curves
from cramjax.reporting.blocks import (
    Axis,
    Block,
    Cell,
    Cloud,
    Lines,
    Note,
    Parallel,
    Point,
    Scatter,
    Section,
    Table,
    number,
)
from cramjax.reporting.drawing import X_AXES, Drawn
from cramjax.reporting.reading import read_text
from cramjax.reporting.words import large

COSTS = {"params": "parameters", "flops": "training FLOPs", "elapsed_s": "seconds of training"}
_LOSS = "eval_loss"
# The first column of figures in a sweep.csv.
_FIGURES_FROM = "params"
# Column of a sweep.csv → how the table of points writes it.
_SHOWN = {
    "params": ",.0f",
    "steps": ",.0f",
    "tokens": ",.0f",
    "flops": ".4g",
    "elapsed_s": ",.1f",
    "eval_loss": ".4f",
    "tokens_per_s": ",.0f",
    "mfu": ".2%",
}
_LOG_FROM = 3.0

Row = Mapping[str, str]


def read(path: pathlib.Path, problems: list[str]) -> list[dict[str, str]]:
    """Returns the rows of a sweep.csv; [] and a problem if it is another thing."""
    text = read_text(path, problems)
    if text is None:
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        problems.append(f"{path}: cannot be read ({error}) and is left out")
        return []
    sound = []
    for row in rows:
        # A row that is cut short lacks cells, one that is too long has a list of them.
        cells = {key: value for key, value in row.items() if isinstance(key, str)}
        sound.append({key: value or "" for key, value in cells.items()})
    if not sound or "point" not in sound[0] or "status" not in sound[0]:
        problems.append(f"{path}: is no sweep.csv and is left out")
        return []
    return sound


def grid_keys(rows: Sequence[Row]) -> list[str]:
    """Returns the keys of the grid: the columns between the status and the figures."""
    columns = list(rows[0])
    start = columns.index("status") + 1
    end = columns.index(_FIGURES_FROM) if _FIGURES_FROM in columns else start
    return columns[start:end]


def section(name: str, rows: Sequence[Row], place: int, drawn: Sequence[Drawn]) -> Section:
    """Returns the section about a sweep.

    Args:
        name: of its folder.
        rows: of its sweep.csv.
        place: of the section among its kind.
        drawn: those of its runs whose curves the page draws.
    """
    keys = grid_keys(rows)
    finished = [row for row in rows if _value(row, _LOSS) is not None]
    counts = collections.Counter(row["status"] for row in rows)
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())

    blocks: list[Block] = []
    if finished:
        blocks.append(_parallel(finished, keys, rows))
        for cost in COSTS:
            if any(_value(row, cost) is not None for row in finished):
                blocks.append(_front(finished, keys, cost))
        blocks.append(_settings(finished, keys))
    else:
        blocks.append(Note(text="No point has a held-out loss yet."))
    blocks += _curves(rows, keys, drawn)
    blocks.append(_table(rows, keys))
    return Section(
        name=f"sweep-{place}",
        title=f"Sweep {name}",
        blocks=blocks,
        intro=f"{len(rows)} points: {listed}.",
    )


def _value(row: Row, key: str) -> float | None:
    try:
        value = float(row.get(key, ""))
    except ValueError:
        return None
    return value if value - value == 0 else None


def _parallel(rows: Sequence[Row], keys: Sequence[str], every: Sequence[Row]) -> Parallel:
    """Returns the lines of finished `rows`; the axes have the values of `every` row."""
    axes = []
    for key in keys:
        values = list(dict.fromkeys(row[key] for row in every))
        if all(_value(row, key) is not None for row in every):
            values.sort(key=float)
        # Grids have few values, often by factors: each gets an equal place.
        axes.append(Axis(label=key, categories=values))
    axes.append(Axis(label="held-out loss"))
    lines = []
    for row in rows:
        lines.append([*(row[key] for key in keys), _value(row, _LOSS)])
    best = min(rows, key=lambda row: _value(row, _LOSS) or 0.0)
    return Parallel(
        title="The grid",
        about=f"Each line is a run. The best: {best['point']}, loss {_value(best, _LOSS):.4f}.",
        axes=axes,
        names=[row["point"] for row in rows],
        rows=lines,
    )


def _front(rows: Sequence[Row], keys: Sequence[str], cost: str) -> Scatter:
    known = [row for row in rows if _value(row, cost) is not None]
    is_on_front = pareto.front([(_value(row, cost), _value(row, _LOSS)) for row in known])
    clouds = []
    for setting in dict.fromkeys(_setting(row, keys) for row in known):
        points = [_point(row, cost) for row in known if _setting(row, keys) == setting]
        clouds.append(Cloud(name=setting, points=points))

    best = [row for row, is_best in zip(known, is_on_front, strict=True) if is_best]
    best.sort(key=lambda row: _value(row, cost) or 0.0)
    edge = [_point(row, cost) for row in best]
    clouds.append(Cloud(name="front", points=edge, is_line=True, is_context=True))
    costs = [_value(row, cost) or 0.0 for row in known]
    is_log = min(costs) > 0 and max(costs) / min(costs) >= _LOG_FROM
    return Scatter(
        title=f"Held-out loss against {COSTS[cost]}",
        about=f"On the front: {'; '.join(row['point'] for row in best[:8])}.",
        x=Axis(label=COSTS[cost], is_log=is_log),
        y=Axis(label="held-out loss, nats"),
        clouds=clouds,
    )


def _curves(rows: Sequence[Row], keys: Sequence[str], drawn: Sequence[Drawn]) -> list[Block]:
    """Returns the charts of held-out loss and BLEU, with a colour for each setting."""
    settings = {row["point"]: _setting(row, keys) for row in rows}
    known = [one for one in drawn if one.run.folder.name in settings]
    groups = list(dict.fromkeys(settings[one.run.folder.name] for one in known))
    loss, bleu = [], []
    for one in known:
        group = groups.index(settings[one.run.folder.name])
        if one.held_out:
            loss.append(dataclasses.replace(one.losses(_LOSS, curves.HELD_OUT), group=group))
        if one.scored:
            bleu.append(dataclasses.replace(one.scores("bleu", "BLEU"), group=group))

    charts: list[Block] = []
    for title, label, series in (
        ("Held-out loss by setting", curves.LOSS, loss),
        ("BLEU by setting", "BLEU", bleu),
    ):
        if series:
            number = f"{len(series)} of {len(rows)} runs" if len(rows) > 1 else "The run"
            about = f"{number}; runs of one setting have one colour."
            y = Axis(label=label)
            charts.append(
                Lines(title=title, about=about, x=X_AXES, y=y, series=series, groups=groups)
            )
    return charts


def _setting(row: Row, keys: Sequence[str]) -> str:
    """Returns a row's values without the seed, unless that is the only key."""
    shown = [key for key in keys if key != "seed"] or list(keys)
    return ", ".join(f"{key}={row[key]}" for key in shown)


def _point(row: Row, cost: str) -> Point:
    x, loss = _value(row, cost) or 0.0, _value(row, _LOSS) or 0.0
    return Point(x=x, y=loss, lines=[row["point"], f"loss {loss:.4f}", f"{COSTS[cost]} {large(x)}"])


def _settings(rows: Sequence[Row], keys: Sequence[str]) -> Table:
    """Returns the table of settings, best first, with the median over seeds."""
    losses: dict[str, list[float]] = {}
    for row in rows:
        losses.setdefault(_setting(row, keys), []).append(_value(row, _LOSS) or 0.0)
    ranked = sorted(losses.items(), key=lambda entry: statistics.median(entry[1]))
    table = []
    for setting, values in ranked:
        median = statistics.median(values)
        spread = f"{min(values):.4f} to {max(values):.4f}" if len(values) > 1 else "one run"
        cells = [Cell(text=setting), Cell(text=f"{median:.4f}", value=median)]
        table.append([*cells, Cell(text=spread), Cell(text=str(len(values)), value=len(values))])
    columns = ["setting", "held-out loss, median", "least to largest", "runs"]
    return Table(title="Settings, best first", columns=columns, rows=table)


def _table(rows: Sequence[Row], keys: Sequence[str]) -> Table:
    table = []
    for row in rows:
        cells = [Cell(text=row["point"]), Cell(text=row["status"], mark=row["status"] == "failed")]
        cells += [Cell(text=row[key]) for key in keys]
        cells += [number(_value(row, key), form) for key, form in _SHOWN.items()]
        table.append([*cells, Cell(text=row.get("error", ""))])
    columns = ["point", "status", *keys, *_SHOWN, "error"]
    return Table(title="All points", columns=columns, rows=table, is_folded=len(rows) > 40)

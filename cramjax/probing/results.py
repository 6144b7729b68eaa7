"""Accuracies from scores of minimal pairs, with their table, picture and files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cramjax import figures
from cramjax.errors import UserError
from cramjax.files import write_json
from cramjax.probing.blimp import Pair

CHANCE = 50.0
"""Accuracy of guessing, in percent."""


def accuracies(
    pairs: Sequence[Pair], scores: np.ndarray, control: np.ndarray | None
) -> dict[str, Any]:
    """Returns percentages of pairs whose good sentence scores higher; a tie is half right.

    They are given overall, by field, by term and by paradigm.

    Args:
        scores: float [pairs, 2] of good and bad sentences.
        control: the same from a model with random weights.
    """
    columns = {"accuracy": _is_right(scores)}
    if control is not None:
        columns["control"] = _is_right(control)

    paradigms = _grouped(pairs, "paradigm", columns)
    for pair in pairs:
        paradigms[pair.paradigm] |= {"field": pair.field, "term": pair.term}

    found: dict[str, Any] = {"n_pairs": len(pairs)}
    suffixes = {"accuracy": "", "control": "_control"}
    for column, right in columns.items():
        found[f"overall{suffixes[column]}"] = _percent(right)
    for column in columns:
        mean = np.mean([entry[column] for entry in paradigms.values()])
        found[f"mean_of_paradigms{suffixes[column]}"] = round(float(mean), 2)
    found["ties"] = int(np.sum(scores[:, 0] == scores[:, 1]))
    found["fields"] = _grouped(pairs, "field", columns)
    found["terms"] = _grouped(pairs, "term", columns)
    found["paradigms"] = paradigms
    return found


def _grouped(
    pairs: Sequence[Pair], key: str, columns: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Returns value of `key` → percentages by column, and the number of pairs `n`."""
    values = np.array([getattr(pair, key) for pair in pairs])
    groups: dict[str, dict[str, Any]] = {}
    for value in dict.fromkeys(values):
        is_member = values == value
        group: dict[str, Any] = {
            column: _percent(right[is_member]) for column, right in columns.items()
        }
        group["n"] = int(np.sum(is_member))
        groups[str(value)] = group
    return groups


def _is_right(scores: np.ndarray) -> np.ndarray:
    """Returns float [pairs]: 1 where the good sentence scores higher, 0.5 for a tie."""
    good, bad = scores[:, 0], scores[:, 1]
    return (good > bad) + 0.5 * (good == bad)


def _percent(right: np.ndarray) -> float:
    return round(100 * float(np.mean(right)), 2)


def table(found: dict[str, Any], *, markdown: bool = False) -> str:
    """Returns the table of accuracies: every field with its paradigms, then all pairs.

    With a control it has the difference as well.
    """
    with_control = "overall_control" in found
    header = ["", "accuracy"]
    if with_control:
        header += ["random weights", "difference"]
    header.append("pairs")

    rows = []
    for field, entry in found["fields"].items():
        title = f"**{field}**" if markdown else field.upper()
        rows.append([title, *_cells(entry, with_control)])
        for name, paradigm in found["paradigms"].items():
            if paradigm["field"] == field:
                rows.append([name.replace("_", " "), *_cells(paradigm, with_control)])

    overall = {
        "accuracy": found["overall"],
        "control": found.get("overall_control"),
        "n": found["n_pairs"],
    }
    rows.append(["**all**" if markdown else "ALL", *_cells(overall, with_control)])

    if markdown:
        lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
        return "\n".join(lines)
    lines = []
    for name, *cells in (header, *rows):
        lines.append(f"{name:<58}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _cells(entry: dict[str, Any], with_control: bool) -> list[str]:
    cells = [f"{entry['accuracy']:.1f}"]
    if with_control:
        difference = entry["accuracy"] - entry["control"]
        cells += [f"{entry['control']:.1f}", f"{difference:+.1f}"]
    return [*cells, f"{entry['n']:,}"]


def check_out(path: pathlib.Path) -> None:
    """Raises UserError if `write` would write its table or picture over `path` itself."""
    if path.suffix in (".md", ".png"):
        raise UserError(
            f"--out {path}: has to be a file of JSON, as runs/blimp.json; .md and .png are written "
            "beside it"
        )


def write(found: dict[str, Any], path: pathlib.Path) -> None:
    """Write the accuracies as JSON to `path`, with a table (.md) and a picture (.png) beside it."""
    write_json(path, found)
    text = table(found, markdown=True) + "\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(found, path.with_suffix(".png"))


def draw(found: dict[str, Any], path: pathlib.Path) -> None:
    """Draw a bar for each paradigm, the best at the top, coloured by field.

    A mark is the control, a dashed line is chance.
    """
    ordered = sorted(found["paradigms"].items(), key=lambda item: item[1]["accuracy"])
    colours = {field: f"C{number}" for number, field in enumerate(found["fields"])}
    figure = figures.new_figure(8, 1 + 0.17 * len(ordered), dpi=120)
    axes = figure.subplots()

    names = []
    for place, (name, entry) in enumerate(ordered):
        names.append(name.replace("_", " "))
        axes.barh(place, entry["accuracy"], color=colours[entry["field"]], height=0.8)
        if "control" in entry:
            axes.plot([entry["control"]], [place], "k|", markersize=5)
    # Bars of no length, for the legend.
    for field, colour in colours.items():
        axes.barh([0], [0], color=colour, label=field)

    axes.axvline(CHANCE, color="grey", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(ordered)), names, fontsize=6)
    axes.set(
        xlim=(0, 100),
        ylim=(-0.7, len(ordered) - 0.3),
        xlabel="accuracy, % (|: random weights, dashed: chance)",
    )
    axes.set_title(f"BLiMP: {found['overall']:.1f}%", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")
    figures.save(figure, path)

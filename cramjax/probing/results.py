"""What scores of minimal pairs come to: accuracies, their table and their picture."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cramjax import figures
from cramjax.probing.blimp import Pair

CHANCE = 50.0


def accuracies(
    pairs: Sequence[Pair], scores: np.ndarray, control: np.ndarray | None
) -> dict[str, Any]:
    """Percent of pairs whose good sentence scores higher: overall, by field, term and paradigm; a tie is half right.

    Args:
        scores: float [pairs, 2] of good and bad sentences. control: the same of a model with random weights.
    """
    columns = {"accuracy": _right(scores)} | (
        {} if control is None else {"control": _right(control)}
    )

    def mean(chosen):
        return {
            name: round(100 * float(np.mean(right[chosen])), 2) for name, right in columns.items()
        }

    def grouped(key):
        names = np.array([getattr(pair, key) for pair in pairs])
        return {
            str(name): mean(names == name) | {"n": int(np.sum(names == name))}
            for name in dict.fromkeys(names)
        }

    paradigms = grouped("paradigm")
    belongs = {pair.paradigm: {"field": pair.field, "term": pair.term} for pair in pairs}
    overall = mean(slice(None))
    found = {"n_pairs": len(pairs), "overall": overall["accuracy"]}
    if control is not None:
        found["overall_control"] = overall["control"]
    for column, ending in zip(columns, ("", "_control"), strict=False):
        mean_of = np.mean([entry[column] for entry in paradigms.values()])
        found[f"mean_of_paradigms{ending}"] = round(float(mean_of), 2)
    found["ties"] = int(np.sum(scores[:, 0] == scores[:, 1]))
    return found | {
        "fields": grouped("field"),
        "terms": grouped("term"),
        "paradigms": {name: entry | belongs[name] for name, entry in paradigms.items()},
    }


def _right(scores: np.ndarray) -> np.ndarray:
    return (scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])


def table(found: dict[str, Any], *, markdown: bool = False) -> str:
    """Accuracies as people print them, with what they are above the control: every field with its paradigms, then all."""
    with_control = "overall_control" in found
    header = ["", "accuracy", *(["random weights", "difference"] if with_control else []), "pairs"]
    rows = []
    for field, entry in found["fields"].items():
        rows.append([f"**{field}**" if markdown else field.upper(), *_cells(entry, with_control)])
        rows += [
            [name.replace("_", " "), *_cells(one, with_control)]
            for name, one in found["paradigms"].items()
            if one["field"] == field
        ]
    everything = {
        "accuracy": found["overall"],
        "control": found.get("overall_control"),
        "n": found["n_pairs"],
    }
    rows.append(["**all**" if markdown else "ALL", *_cells(everything, with_control)])
    if markdown:
        return "\n".join(
            f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)
        )
    return "\n".join(
        f"{name:<58}" + "".join(f"{cell:>16}" for cell in cells) for name, *cells in (header, *rows)
    )


def _cells(entry: dict[str, Any], with_control: bool) -> list[str]:
    cells = [f"{entry['accuracy']:.1f}"]
    if with_control:
        cells += [f"{entry['control']:.1f}", f"{entry['accuracy'] - entry['control']:+.1f}"]
    return [*cells, f"{entry['n']:,}"]


def draw(found: dict[str, Any], path: pathlib.Path) -> None:
    """A bar for each paradigm, best first, coloured by field, with the control as a mark and chance as a line."""
    ordered = sorted(found["paradigms"].items(), key=lambda item: item[1]["accuracy"])
    fields = list(found["fields"])
    figure = figures.new_figure(8, 1 + 0.17 * len(ordered), dpi=120)
    axes = figure.subplots()
    for place, (_, entry) in enumerate(ordered):
        axes.barh(place, entry["accuracy"], color=f"C{fields.index(entry['field'])}", height=0.8)
        if "control" in entry:
            axes.plot([entry["control"]], [place], "k|", markersize=5)
    for number, field in enumerate(fields):
        axes.barh([0], [0], color=f"C{number}", label=field)
    axes.axvline(CHANCE, color="grey", linewidth=0.8, linestyle="--")
    axes.set_yticks(
        range(len(ordered)), [name.replace("_", " ") for name, _ in ordered], fontsize=6
    )
    axes.set(
        xlim=(0, 100),
        ylim=(-0.7, len(ordered) - 0.3),
        xlabel="accuracy, % (|: random weights, dashed: chance)",
    )
    axes.set_title(f"BLiMP: {found['overall']:.1f}%", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")
    figures.save(figure, path)

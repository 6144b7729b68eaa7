"""BLiMP (arXiv 1912.00582): pairs of sentences, one of them grammatical, by paradigm, and what a model scores on them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cramjax.config.errors import UserError

_KEYS = {
    "good": "sentence_good",
    "bad": "sentence_bad",
    "field": "field",
    "term": "linguistics_term",
    "paradigm": "UID",
}
CHANCE = 50.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A minimal pair; `paradigm` belongs to a `term` (a phenomenon) and that to a `field`."""

    good: str
    bad: str
    field: str
    term: str
    paradigm: str


def read(data_dir: str | pathlib.Path, limit: int | None = None) -> list[Pair]:
    """The pairs of all *.jsonl files in a folder, of each the first `limit`, in the order of their names.

    Raises:
        UserError: for a folder without such files, and for lines that are none of BLiMP.
    """
    folder = pathlib.Path(data_dir)
    paths = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not paths:
        raise UserError(f"--data_dir {folder}: holds no .jsonl files; name the folder with BLiMP's 67")
    pairs = []
    for path in paths:
        with path.open(encoding="utf-8", newline="\n") as file:
            pairs += [
                _pair(line, f"{path}:{number}")
                for number, line in zip(range(1, (limit or 10**9) + 1), file, strict=False)
            ]
    return pairs


def _pair(line: str, where: str) -> Pair:
    try:
        raw = json.loads(line)
        pair = Pair(**{name: raw[key] for name, key in _KEYS.items()})
        # The files spell one field in two ways.
        return dataclasses.replace(pair, field=pair.field.replace("_", "/"))
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not a line of JSON ({error.msg})") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: has no {error}; a line of BLiMP has {', '.join(_KEYS.values())}") from error


def accuracies(pairs: Sequence[Pair], scores: np.ndarray, control: np.ndarray | None) -> dict[str, Any]:
    """Percent of pairs whose good sentence scores higher: overall, by field, term and paradigm; a tie is half right.

    Args:
        scores: float [pairs, 2] of good and bad sentences. control: the same of a model with random weights.
    """
    columns = {"accuracy": _right(scores)} | ({} if control is None else {"control": _right(control)})

    def mean(chosen):
        return {name: round(100 * float(np.mean(right[chosen])), 2) for name, right in columns.items()}

    def grouped(key):
        names = np.array([getattr(pair, key) for pair in pairs])
        return {str(name): mean(names == name) | {"n": int(np.sum(names == name))} for name in dict.fromkeys(names)}

    paradigms = grouped("paradigm")
    belongs = {pair.paradigm: {"field": pair.field, "term": pair.term} for pair in pairs}
    overall = mean(slice(None))
    found = {"n_pairs": len(pairs), "overall": overall["accuracy"]}
    if control is not None:
        found["overall_control"] = overall["control"]
    found |= {"mean_of_paradigms": round(float(np.mean([entry["accuracy"] for entry in paradigms.values()])), 2)}
    found["ties"] = int(np.sum(scores[:, 0] == scores[:, 1]))
    return found | {
        "fields": grouped("field"),
        "terms": grouped("term"),
        "paradigms": {name: entry | belongs[name] for name, entry in paradigms.items()},
    }


def _right(scores: np.ndarray) -> np.ndarray:
    return (scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])


def table(found: dict[str, Any], *, markdown: bool = False) -> str:
    """Accuracies as people print them: every field with its paradigms, then all."""
    with_control = "overall_control" in found
    header = ["", "accuracy", *(["random weights"] if with_control else []), "pairs"]
    rows = []
    for field, entry in found["fields"].items():
        rows.append([f"**{field}**" if markdown else field.upper(), *_cells(entry, with_control)])
        rows += [
            [name.replace("_", " "), *_cells(one, with_control)]
            for name, one in found["paradigms"].items()
            if one["field"] == field
        ]
    everything = {"accuracy": found["overall"], "control": found.get("overall_control"), "n": found["n_pairs"]}
    rows.append(["**all**" if markdown else "ALL", *_cells(everything, with_control)])
    if markdown:
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
    return "\n".join(f"{name:<58}" + "".join(f"{cell:>16}" for cell in cells) for name, *cells in (header, *rows))


def _cells(entry: dict[str, Any], with_control: bool) -> list[str]:
    return [f"{entry['accuracy']:.1f}", *([f"{entry['control']:.1f}"] if with_control else []), f"{entry['n']:,}"]


def draw(found: dict[str, Any], path: pathlib.Path) -> None:
    """A bar for each paradigm, best first, coloured by field, with the control as a mark and chance as a line."""
    from matplotlib.figure import Figure

    ordered = sorted(found["paradigms"].items(), key=lambda item: item[1]["accuracy"])
    fields = list(found["fields"])
    figure = Figure(figsize=(8, 1 + 0.17 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    for place, (_, entry) in enumerate(ordered):
        axes.barh(place, entry["accuracy"], color=f"C{fields.index(entry['field'])}", height=0.8)
        if "control" in entry:
            axes.plot([entry["control"]], [place], "k|", markersize=5)
    for number, field in enumerate(fields):
        axes.barh([0], [0], color=f"C{number}", label=field)
    axes.axvline(CHANCE, color="grey", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(ordered)), [name.replace("_", " ") for name, _ in ordered], fontsize=6)
    axes.set(xlim=(0, 100), ylim=(-0.7, len(ordered) - 0.3), xlabel="accuracy, % (|: random weights, dashed: chance)")
    axes.set_title(f"BLiMP: {found['overall']:.1f}%", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=120)

"""The tables of a study of compression: sizes at equal time, and at equal bytes.

The second are models after pruning and quantising.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.sweeps.studies import Rows, Study, StudyResults, markdown
from cramjax.sweeps.sweep import Result

Entry = Mapping[str, Any]
"""An entry of pareto.json."""

_SIZES_HEAD = ("size", "parameters", "steps", "tokens", "FLOPs", "held-out loss")


def report(study: Study, results: StudyResults) -> str:
    """Returns the text of report.md.

    It has the sizes at equal time and, for each compression, the best model within a number of
    bytes, and what pruning alone and quantising alone take away.
    """
    parts = [_sizes(study.sweeps[name].title, runs) for name, runs in results.sweeps.items()]
    return "# Train large, then compress\n\n" + "\n".join(parts + compressions(study, results))


def compressions(study: Study, results: StudyResults) -> list[str]:
    """Returns the sections about compressed models."""
    parts = []
    for name, entries in results.compressions.items():
        title = study.compressions[name].title
        parts += [
            f"## {title}: the best of each size within so many bytes\n\n{within(entries)}\n",
            f"## {title}: pruned, {_most_bits(entries)} bits\n\n{_pruned(entries)}\n",
            f"## {title}: quantised, nothing pruned\n\n{_quantised(entries)}\n",
        ]
    return parts


def _sizes(title: str, results: Sequence[Result]) -> str:
    rows: Rows = []
    for result in results:
        summary = result.summary
        if not summary:
            continue
        loss = "no number"
        if summary["eval_loss"] is not None:
            loss = f"{summary['eval_loss']:.3f}"
        rows.append(
            (
                ", ".join(result.point.values.values()),
                f"{summary['params'] / 1e6:.2f} M",
                f"{summary['steps']:,}",
                f"{summary['tokens'] / 1e6:.1f} M",
                f"{summary['flops']:.2e}",
                loss,
            )
        )
    return f"## {title}\n\n{markdown(_SIZES_HEAD, rows)}\n"


def _models(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry["model"] for entry in entries))


def _quality(entry: Entry) -> float:
    """Returns the value of an entry so that larger is better."""
    return -entry["value"] if entry["metric"].endswith("loss") else entry["value"]


def budgets(entries: Sequence[Entry]) -> list[int]:
    """Returns numbers of bytes, each twice the one before.

    The smallest entry fits the first, and all entries fit the last.
    """
    sizes = [entry["bytes"] for entry in entries]
    first = math.ceil(math.log2(min(sizes) / 1e6))
    last = math.ceil(math.log2(max(sizes) / 1e6))
    return [round(2**power * 1e6) for power in range(first, last + 1)]


def within(entries: Sequence[Entry]) -> str:
    """Returns a table with the best entry of each model within each of `budgets`.

    The best of a column is bold.
    """
    limits = budgets(entries)
    models = _models(entries)
    best = {(model, limit): _best(entries, model, limit) for model in models for limit in limits}
    top = {}
    for limit in limits:
        fitting = [best[model, limit] for model in models]
        top[limit] = max(_quality(entry) for entry in fitting if entry is not None)

    rows: Rows = []
    for model in models:
        cells = [_best_cell(best[model, limit], top[limit]) for limit in limits]
        rows.append((model, *cells))
    head = [f"{limit / 1e6:g} MB" for limit in limits]
    return markdown((f"{entries[0]['metric']}, at most", *head), rows)


def _best(entries: Sequence[Entry], model: str, limit: int) -> Entry | None:
    """Returns the best entry of `model` with at most `limit` bytes, the smallest of equal ones."""
    fitting = [entry for entry in entries if entry["model"] == model and entry["bytes"] <= limit]
    return max(fitting, key=lambda entry: (_quality(entry), -entry["bytes"]), default=None)


def _best_cell(entry: Entry | None, top: float) -> str:
    if entry is None:
        return ""
    value = f"{entry['value']:.1f}"
    if _quality(entry) == top:
        value = f"**{value}**"
    pruned = f"{entry['prune']:.0%} pruned, " if entry["prune"] else ""
    return f"{value} ({pruned}{entry['bits']} bits)"


def _most_bits(entries: Sequence[Entry]) -> int:
    return max(entry["bits"] for entry in entries)


def _pruned(entries: Sequence[Entry]) -> str:
    """Returns a table of the shares of pruning, at the most bits."""
    bits = _most_bits(entries)
    kept = [entry for entry in entries if entry["bits"] == bits]
    shares = sorted({entry["prune"] for entry in kept})
    return _along(kept, "prune", shares, [f"{share:.0%}" for share in shares])


def _quantised(entries: Sequence[Entry]) -> str:
    """Returns a table of the numbers of bits, at the least pruning."""
    share = min(entry["prune"] for entry in entries)
    kept = [entry for entry in entries if entry["prune"] == share]
    bits = sorted({entry["bits"] for entry in kept}, reverse=True)
    return _along(kept, "bits", bits, [f"{number} bits" for number in bits])


def _along(entries: Sequence[Entry], key: str, values: Sequence[float], head: Sequence[str]) -> str:
    """Returns a table with a row for each model and a column for each of `values` of `key`.

    A cell has the median of the seeds, the least and the largest.
    """
    by_place = {(entry["model"], entry[key]): entry for entry in entries}
    rows: Rows = []
    for model in _models(entries):
        cells = [_spread(by_place.get((model, value))) for value in values]
        rows.append((model, *cells))
    return markdown((entries[0]["metric"], *head), rows)


def _spread(entry: Entry | None) -> str:
    if entry is None:
        return ""
    values = entry["values"]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{entry['value']:.1f}{spread}"

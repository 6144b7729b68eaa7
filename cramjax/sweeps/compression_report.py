"""The tables of a study of compression: what each size is worth at equal time, and at equal bytes after pruning and quantising."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.sweeps.studies import Found, Rows, Study, markdown
from cramjax.sweeps.sweep import Result

Entry = Mapping[str, Any]


def report(study: Study, found: Found) -> str:
    """Sizes at equal time, and of each compression what fits into how many bytes and what pruning and quantising alone take away."""
    parts = [_sizes(study.sweeps[name].title, results) for name, results in found.sweeps.items()]
    for name, entries in found.compressions.items():
        title = study.compressions[name].title
        parts += [
            f"## {title}: the best of each size within so many bytes\n\n{within(entries)}\n",
            f"## {title}: pruned, {_whole(entries)} bits\n\n{_along(entries, 'prune', 'bits')}\n",
            f"## {title}: quantised, nothing pruned\n\n{_along(entries, 'bits', 'prune')}\n",
        ]
    return "# Train large, then compress\n\n" + "\n".join(parts)


def _sizes(title: str, results: Sequence[Result]) -> str:
    rows: Rows = []
    for result in results:
        if summary := result.summary:
            cells = (
                f"{summary['steps']:,}",
                f"{summary['tokens'] / 1e6:.1f} M",
                f"{summary['flops']:.2e}",
            )
            size = f"{summary['params'] / 1e6:.2f} M"
            rows.append(
                (
                    ", ".join(result.point.values.values()),
                    size,
                    *cells,
                    f"{summary['eval_loss']:.3f}",
                )
            )
    return f"## {title}\n\n{markdown(('size', 'parameters', 'steps', 'tokens', 'FLOPs', 'held-out loss'), rows)}\n"


def _models(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(entry["model"] for entry in entries))


def _better(entry: Entry) -> float:
    """What is larger of a better entry."""
    return -entry["value"] if entry["metric"].endswith("loss") else entry["value"]


def budgets(entries: Sequence[Entry]) -> list[int]:
    """Bytes, each twice the one before, from what the smallest entry needs to what the largest does."""
    sizes = [entry["bytes"] for entry in entries]
    first, last = (math.ceil(math.log2(size / 1e6)) for size in (min(sizes), max(sizes)))
    return [round(2**power * 1e6) for power in range(first, last + 1)]


def within(entries: Sequence[Entry]) -> str:
    """A table: for each model the best of its entries within each of `budgets`; the best of a column is bold."""
    limits = budgets(entries)
    best: dict[tuple[str, int], Entry] = {}
    for model in _models(entries):
        for limit in limits:
            fits = [
                entry for entry in entries if entry["model"] == model and entry["bytes"] <= limit
            ]
            if fits:
                best[model, limit] = max(fits, key=lambda entry: (_better(entry), -entry["bytes"]))
    rows: Rows = []
    for model in _models(entries):
        cells = []
        for limit in limits:
            if (entry := best.get((model, limit))) is None:
                cells.append("")
                continue
            top = max(_better(other) for (_, at), other in best.items() if at == limit)
            value = (
                f"**{entry['value']:.1f}**" if _better(entry) == top else f"{entry['value']:.1f}"
            )
            cells.append(f"{value} ({_how(entry)})")
        rows.append((model, *cells))
    return markdown(
        (f"{entries[0]['metric']}, at most", *(f"{limit / 1e6:g} MB" for limit in limits)), rows
    )


def _how(entry: Entry) -> str:
    share = f"{entry['prune']:.0%} pruned, " if entry["prune"] else ""
    return f"{share}{entry['bits']} bits"


def _whole(entries: Sequence[Entry]) -> int:
    return max(entry["bits"] for entry in entries)


def _along(entries: Sequence[Entry], key: str, other: str) -> str:
    """A table of all values of `key`, where `other` takes nothing away: medians, the least and the largest of the seeds."""
    least = {"prune": min(entry["prune"] for entry in entries), "bits": _whole(entries)}[other]
    kept = [entry for entry in entries if entry[other] == least]
    values = sorted({entry[key] for entry in kept}, reverse=key == "bits")
    at = {(entry["model"], entry[key]): entry for entry in kept}
    rows: Rows = []
    for model in _models(kept):
        found = [at.get((model, value)) for value in values]
        rows.append((model, *("" if entry is None else _spread(entry) for entry in found)))
    head = [f"{value:.0%}" if key == "prune" else f"{value} bits" for value in values]
    return markdown((kept[0]["metric"], *head), rows)


def _spread(entry: Entry) -> str:
    values = entry["values"]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{entry['value']:.1f}{spread}"

"""The entries of pareto.json: medians over the seeds of each model, share and number of bits."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.compress.candidates import Candidate
from cramjax.compress.plan import WHOLE, CompressionPlan
from cramjax.compress.points import Point, PointFolders
from cramjax.reporting import compressions


def make_entries(
    out: pathlib.Path,
    plan: CompressionPlan,
    candidates: Sequence[Candidate],
    folders: PointFolders,
) -> list[dict[str, Any]]:
    """Returns an entry for each model, share and number of bits that has a result.

    `pareto_bytes`, `pareto_nonzero` and `pareto_latency` say whether it is on the front.
    """
    entries = []
    for candidate in candidates:
        for share in sorted(plan.shares):
            for bits in plan.bits:
                points = [Point(candidate, seed, share, bits) for seed in range(plan.n_seeds)]
                done = [point for point in points if folders.is_done(point)]
                if done:
                    results = [folders.result(point) for point in done]
                    folder = folders.folder(done[0]).relative_to(out)
                    entries.append(_entry(plan, done[0], str(folder), results))

    for cost in compressions.COSTS:
        is_on_front = compressions.front(entries, cost)
        for entry, value in zip(entries, is_on_front, strict=True):
            entry[f"pareto_{cost}"] = value
    return entries


def _entry(
    plan: CompressionPlan, point: Point, folder: str, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the entry of a point, from the results of its seeds; `folder` is the first seed's."""

    def median(key: str) -> float:
        return statistics.median(result[key] for result in results)

    losses = [result["loss"] for result in results if result["loss"] is not None]
    loss = statistics.median(losses) if losses else None
    return {
        "model": point.candidate.name,
        "prune": point.share,
        "bits": point.bits,
        "bytes": median("bytes"),
        "value": median("value"),
        "params": median("params"),
        "nonzero": median("nonzero"),
        "metric": results[0]["metric"],
        "values": [result["value"] for result in results],
        "loss": loss,
        "structured": plan.structured,
        "granularity": None if point.bits == WHOLE else plan.granularity,
        "int8": results[0].get("int8", False),
        "latency": _latency([result["latency"] for result in results]),
        "folder": folder,
    }


def _latency(
    latencies: Sequence[Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, float]]:
    """Returns the medians over the seeds: {"batch_1": {"p50_ms": …, "p99_ms": …}, …}."""
    medians: dict[str, dict[str, float]] = {}
    for batch, numbers in latencies[0].items():
        medians[batch] = {}
        for key in numbers:
            medians[batch][key] = statistics.median(latency[batch][key] for latency in latencies)
    return medians

"""The tables of the study of growth: what each way to grow ends with, and how soon it is where the control ends."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.sweeps.studies import Found, Rows, Study, Sweep, markdown, median
from cramjax.sweeps.sweep import Result
from cramjax.training import metrics

CONTROL = ("control",)


def reached(curve: Sequence[Mapping[str, float]], key: str, loss: float) -> float | None:
    """What `key` of the evaluations in `curve` was when the held-out loss first fell to `loss`, between two of them by a straight line.

    None where it never did.
    """
    before = None
    for line in curve:
        if line["eval_loss"] <= loss:
            if before is None:
                return line[key]
            share = (before["eval_loss"] - loss) / (before["eval_loss"] - line["eval_loss"])
            return before[key] + share * (line[key] - before[key])
        before = line
    return None


def _curve(result: Result) -> list[dict[str, Any]]:
    lines = metrics.read(result.workdir / "metrics.jsonl")
    return [line for line in lines if line.get("eval_loss") is not None]


def _by_arm(results: Sequence[Result]) -> dict[tuple[str, ...], list[Result]]:
    """Finished results by the values of their grid but the seed, in the order of the grid."""
    arms: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if result.summary:
            arm = tuple(value for key, value in result.point.values.items() if key != "seed")
            arms.setdefault(arm, []).append(result)
    return arms


def report(study: Study, found: Found) -> str:
    """Final losses of each way to grow, and what it took each to come to the loss that the control of the same seed ends with."""
    results = found.sweeps
    parts = [
        _equal_budget(study.sweeps[name], results[name])
        for name in ("hours", "flops")
        if name in results
    ]
    final = {
        result.point.values["seed"]: result.summary["eval_loss"]
        for result in _by_arm(results.get("hours", ())).get(CONTROL, [])
    }
    rows: Rows = []
    for arm, runs in _by_arm(results.get("sooner", ())).items():
        pairs = [
            (run.summary["eval_loss"], final.get(run.point.values["seed"], -math.inf))
            for run in runs
        ]
        below = sum(loss <= goal for loss, goal in pairs)
        rows.append(
            (", ".join(arm), median([loss for loss, _ in pairs]), f"{below} of {len(runs)}")
        )
    if rows:
        head = ("arm, hours", "held-out loss", "at most the control's of all hours")
        parts.append(f"## {study.sweeps['sooner'].title}\n\n{markdown(head, rows)}\n")
    return "# Growth\n\n" + "\n".join(parts)


def _equal_budget(part: Sweep, results: Sequence[Result]) -> str:
    arms = _by_arm(results)
    final = {run.point.values["seed"]: run.summary for run in arms.get(CONTROL, [])}
    rows: Rows = []
    for arm, runs in arms.items():
        first = runs[0].summary
        losses = [run.summary["eval_loss"] for run in runs]
        shares = []
        for key in ("elapsed_s", "flops"):
            pairs = [
                (run, final[run.point.values["seed"]])
                for run in runs
                if run.point.values["seed"] in final
            ]
            found = [
                (reached(_curve(run), key, goal["eval_loss"]), goal[key]) for run, goal in pairs
            ]
            known = [at / whole for at, whole in found if at is not None]
            shares.append(
                f"{statistics.median(known):.0%}"
                if len(known) == len(runs)
                else f"{len(known)} of {len(runs)} do"
            )
        rows.append(
            (
                ", ".join(arm),
                f"{first['steps']:,}",
                f"{first['tokens'] / 1e6:.2f} M",
                f"{first['flops']:.2e}",
                median(losses),
                *shares,
            )
        )
    head = (
        "arm",
        "steps",
        "tokens",
        "FLOPs",
        "held-out loss",
        "control's loss after, of its seconds",
        "of its FLOPs",
    )
    return f"## {part.title}\n\n{markdown(head, rows)}\n"

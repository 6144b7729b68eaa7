"""The tables of the study of growth: final losses, and how soon the control's loss is reached."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cramjax.sweeps.studies import Rows, Study, StudyResults, SweepPart, markdown, median
from cramjax.sweeps.sweep import Result
from cramjax.training import equal_loss

Arm = tuple[str, ...]
"""The values of a grid without the seed: one way to grow."""

CONTROL: Arm = ("control",)

_BUDGET_HEAD = (
    "arm",
    "steps",
    "tokens",
    "FLOPs",
    "held-out loss",
    "control's loss after, of its seconds",
    "of its FLOPs",
)
_SOONER_HEAD = ("arm, hours", "held-out loss", "at most the control's of all hours")


def _by_arm(results: Sequence[Result]) -> dict[Arm, list[Result]]:
    """Returns the finished results of each arm, in the order of the grid."""
    arms: dict[Arm, list[Result]] = {}
    for result in results:
        if result.summary:
            arm = tuple(value for key, value in result.point.values.items() if key != "seed")
            arms.setdefault(arm, []).append(result)
    return arms


def _seed(result: Result) -> str:
    return result.point.values["seed"]


def _loss(result: Result) -> float:
    """Returns the held-out loss of a finished run; infinity if it ended with NaN."""
    loss = result.summary["eval_loss"]
    return math.inf if loss is None else loss


def report(study: Study, results: StudyResults) -> str:
    """Returns the text of report.md.

    It has the final losses of each way to grow, and what it took each to reach the loss with which
    the control of the same seed ends.
    """
    parts = []
    for name in ("hours", "flops"):
        if name in results.sweeps:
            parts.append(_equal_budget(study.sweeps[name], results.sweeps[name]))

    rows = _sooner(results.sweeps.get("hours", ()), results.sweeps.get("sooner", ()))
    if rows:
        parts.append(f"## {study.sweeps['sooner'].title}\n\n{markdown(_SOONER_HEAD, rows)}\n")
    return "# Growth\n\n" + "\n".join(parts)


def _sooner(hours: Sequence[Result], sooner: Sequence[Result]) -> Rows:
    """Returns a row for each arm of `sooner`: do its runs end below the controls of `hours`?"""
    controls = _by_arm(hours).get(CONTROL, [])
    goals = {_seed(run): _loss(run) for run in controls if math.isfinite(_loss(run))}
    rows: Rows = []
    for arm, runs in _by_arm(sooner).items():
        losses = [_loss(run) for run in runs]
        n_below = 0
        for run, loss in zip(runs, losses, strict=True):
            # Without a control of the seed, nothing is below it.
            n_below += loss <= goals.get(_seed(run), -math.inf)
        rows.append((", ".join(arm), median(losses), f"{n_below} of {len(runs)}"))
    return rows


def _equal_budget(part: SweepPart, results: Sequence[Result]) -> str:
    arms = _by_arm(results)
    controls = {_seed(run): run.summary for run in arms.get(CONTROL, [])}
    rows: Rows = []
    for arm, runs in arms.items():
        first = runs[0].summary
        rows.append(
            (
                ", ".join(arm),
                f"{first['steps']:,}",
                f"{first['tokens'] / 1e6:.2f} M",
                f"{first['flops']:.2e}",
                median([_loss(run) for run in runs]),
                _share_of_control(runs, controls, "elapsed_s"),
                _share_of_control(runs, controls, "flops"),
            )
        )
    return f"## {part.title}\n\n{markdown(_BUDGET_HEAD, rows)}\n"


def _share_of_control(
    runs: Sequence[Result], controls: Mapping[str, dict[str, Any]], key: str
) -> str:
    """Returns the median share of the control's `key` after which runs have the control's loss.

    If some runs do not reach it, the number of those that do is returned instead.
    """
    shares = []
    for run in runs:
        control = controls.get(_seed(run))
        if control is None or control["eval_loss"] is None:
            continue
        value = equal_loss.reached(equal_loss.curve(run.workdir), key, control["eval_loss"])
        if value is not None:
            shares.append(value / control[key])
    if len(shares) < len(runs):
        return f"{len(shares)} of {len(runs)} do"
    return f"{statistics.median(shares):.0%}"

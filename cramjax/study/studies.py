"""Studies: several sweeps over one recipe and the tables that answer a question; each by one command."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cramjax.config.errors import UserError
from cramjax.study import grid, sweep
from cramjax.study.sweep import Result
from cramjax.training import metrics

Rows = list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep of a study: `overrides` of the recipe as "key=value", `grids` as `tools.sweep` takes them, and what it shows."""

    title: str
    overrides: tuple[str, ...] = ()
    grids: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Sweeps by the name of their folder; `report` makes of their results the text of report.md."""

    recipe: str
    sweeps: Mapping[str, Sweep]
    report: Callable[[Study, Mapping[str, Sequence[Result]]], str]


def run(study: Study, overrides: Sequence[str], out: pathlib.Path) -> int:
    """Do what is missing of `study` with more `overrides` for all runs; writes `out`/report.md. Returns an exit code, as `run_sweep`.

    Raises:
        UserError: where an override is of a key that the study sets, or as `run_sweep`.
    """
    points = {}
    for name, part in study.sweeps.items():
        own = {text.partition("=")[0] for text in part.overrides}
        for text in overrides:
            if (key := text.partition("=")[0]) in own:
                raise UserError(f"--config.{text}: the study sets {key} itself; leave it out")
        points[name] = grid.points_of(study.recipe, (*part.overrides, *overrides), grid.parse_grids(part.grids))
    out.mkdir(parents=True, exist_ok=True)
    code = 0
    for name, part in points.items():
        ended = sweep.run_sweep(part, out / name)
        code = max(code, ended)
        if ended > 1:  # a signal; after a point that failed the other sweeps go on
            break
        results = {done: sweep.find_results(points[done], out / done) for done in points if (out / done).is_dir()}
        (out / "report.md").write_text(study.report(study, results), encoding="utf-8")
    return code


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def _median(values: Sequence[float]) -> str:
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3f}{spread}"


def _by_arm(results: Sequence[Result]) -> dict[tuple[str, ...], list[Result]]:
    """Finished results by the values of their grid but the seed, in the order of the grid."""
    arms: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if result.summary:
            arm = tuple(value for key, value in result.point.values.items() if key != "seed")
            arms.setdefault(arm, []).append(result)
    return arms


CONTROL = ("control",)


def growth_report(study: Study, results: Mapping[str, Sequence[Result]]) -> str:
    """Final losses of each way to grow, and what it took each to come to the loss that the control of the same seed ends with."""
    parts = [_equal_budget(study.sweeps[name], results[name]) for name in ("hours", "flops") if name in results]
    final = {
        result.point.values["seed"]: result.summary["eval_loss"]
        for result in _by_arm(results.get("hours", ())).get(CONTROL, [])
    }
    rows: Rows = []
    for arm, runs in _by_arm(results.get("sooner", ())).items():
        pairs = [(run.summary["eval_loss"], final.get(run.point.values["seed"], -math.inf)) for run in runs]
        below = sum(loss <= goal for loss, goal in pairs)
        rows.append((", ".join(arm), _median([loss for loss, _ in pairs]), f"{below} of {len(runs)}"))
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
            pairs = [(run, final[run.point.values["seed"]]) for run in runs if run.point.values["seed"] in final]
            found = [(reached(_curve(run), key, goal["eval_loss"]), goal[key]) for run, goal in pairs]
            known = [at / whole for at, whole in found if at is not None]
            shares.append(
                f"{statistics.median(known):.0%}" if len(known) == len(runs) else f"{len(known)} of {len(runs)} do"
            )
        rows.append(
            (
                ", ".join(arm),
                f"{first['steps']:,}",
                f"{first['tokens'] / 1e6:.2f} M",
                f"{first['flops']:.2e}",
                _median(losses),
                *shares,
            )
        )
    head = ("arm", "steps", "tokens", "FLOPs", "held-out loss", "control's loss after, of its seconds", "of its FLOPs")
    return f"## {part.title}\n\n{markdown(head, rows)}\n"


_ARMS = "variant=control,stack,depth,width,length,compound"
_SEEDS = "seed=0,1,2"
_FLOPS = ("budget.hours=None", "budget.flops=1e13")

STUDIES = {
    "growth": Study(
        recipe="configs/growth_small.py",
        sweeps={
            "hours": Sweep(title="Equal wall-clock", grids=(_SEEDS, f"{_ARMS},late,small")),
            "sooner": Sweep(
                title="Three quarters of the time, with schedules that decay in full",
                grids=(_SEEDS, "variant=stack,compound,late", "budget.hours=0.025"),
            ),
            "flops": Sweep(title="Equal FLOPs", overrides=_FLOPS, grids=(_SEEDS, _ARMS)),
        },
        report=growth_report,
    ),
}

"""A track: changes to a recipe, tried one after the other, each against the standing best.

Budget, data, tokenizer, held-out set and evaluation are fixed. An entry is one change on top of the
best so far, trained with several seeds. It becomes the best if its held-out loss is lower by
Welch's test; otherwise it stays in the table with its figures.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from cramjax import figures
from cramjax.errors import UserError
from cramjax.files import finite, read_json, replacing, write_json
from cramjax.sweeps import grid, sweep
from cramjax.sweeps.studies import Rows, markdown
from cramjax.sweeps.sweep import Launch, Result

LEVEL = 0.01
"""An entry wins if chance alone gives such a difference less often than this."""

START = "control"
_HEAD = ("entry", "against", "held-out loss", "difference", "p", "tokens", "seconds", "FLOPs", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """A recipe and the names of its variants in the order in which they are tried.

    Variants compose: the recipe takes several, with + between them. A name may come again, to be
    tried on what was found since, or once more on itself.
    """

    recipe: str
    entries: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """An entry with its runs.

    Attributes:
        name: the change, "control" for the first.
        variant: all changes of these runs, as the recipe takes them.
        against: the variant that was the best before, None for the first.
        losses: held-out losses in nats, one a seed; infinity for a run that ended with NaN.
        difference: of the means, negative if the entry is better; NaN for the first.
        p: of Welch's test that the entry's mean is not lower; NaN for the first.
        tokens, seconds, flops: medians of the runs.
    """

    name: str
    variant: str
    against: str | None
    losses: tuple[float, ...]
    difference: float
    p: float
    tokens: float
    seconds: float
    flops: float

    @property
    def is_sound(self) -> bool:
        """True if every run ended with a number."""
        return all(map(math.isfinite, self.losses))

    @property
    def wins(self) -> bool:
        """True if it is the best from now on."""
        return self.against is None or (self.difference < 0 and self.p < LEVEL)


def run(
    track: Track,
    overrides: Sequence[str],
    out: pathlib.Path,
    *,
    n_seeds: int,
    n_jobs: int = 1,
    launch: Launch = sweep.launch,
) -> int:
    """Train what is missing of `track` in `out`, and write its files there as it goes.

    These are report.md, track.png and track.json, which has the entries as they were judged.

    Args:
        track: the recipe and its entries.
        overrides: "key=value" for all runs.
        out: folder of the track.
        n_seeds: runs of each entry, at least 2.
        n_jobs: runs at a time.
        launch: starts a run.

    Returns:
        0; 1 after an entry with a run that failed, which ends the track; 128 + n after signal n.

    Raises:
        UserError: for too few seeds, another number of them than in `out`, a control that ends
            with no number, or as `run_sweep` raises it.
    """
    if n_seeds < 2:
        raise UserError(f"--seeds {n_seeds}: a track compares means; give 2 or more, better 5")
    out.mkdir(parents=True, exist_ok=True)
    _check_seeds(out, n_seeds)
    judged: list[Judged] = []
    for number, name in enumerate((START, *track.entries)):
        best = standing(judged)
        variant = name if best is None or best.variant == START else f"{best.variant}+{name}"
        points, reason = _planned(track, overrides, variant, judged, n_seeds)
        if reason:
            print(f"{name}: {reason}", file=sys.stderr, flush=True)
            continue

        folder = out / f"{number:02d}-{name}"
        code = sweep.run_sweep(points, folder, n_jobs=n_jobs, launch=launch)
        if code:
            return code

        judged.append(judge(name, variant, best, sweep.find_results(points, folder)))
        if best is None and not judged[0].is_sound:
            raise UserError(
                f"{folder}: a run of the control ended with no number, so nothing can be compared "
                "with it; lower optimizer.lr, or set optimizer.clip_norm"
            )
        _write(judged, out, n_seeds)
        print(_line(judged[-1]), file=sys.stderr, flush=True)
    return 0


def _planned(
    track: Track, overrides: Sequence[str], variant: str, judged: Sequence[Judged], n_seeds: int
) -> tuple[list[grid.Point], str]:
    """Returns the runs of an entry, or no runs and the reason to pass it over."""
    best = standing(judged)
    if best is None:
        return _points(track, overrides, variant, n_seeds), ""

    try:
        points = _points(track, overrides, variant, n_seeds)
    except UserError as error:
        # Some changes exclude each other, and nobody knows before which of them win.
        return [], f"not tried on {best.variant}: {error}"
    for entry in judged:
        earlier = _points(track, overrides, entry.variant, 1)[0].config
        if points[0].config | {"name": None} == earlier | {"name": None}:
            return [], f"on {best.variant} it is {entry.variant}, which was tried already"
    return points, ""


def _points(track: Track, overrides: Sequence[str], variant: str, n_seeds: int) -> list[grid.Point]:
    """Returns the runs of an entry."""
    seeds = ",".join(map(str, range(n_seeds)))
    grids = grid.parse_grids([f"variant={variant}", f"seed={seeds}"])
    return grid.points_of(track.recipe, overrides, grids)


def _check_seeds(out: pathlib.Path, n_seeds: int) -> None:
    """Note the number of seeds; raises UserError if the entries of `out` have another one."""
    path = out / "track.json"
    if not path.exists():
        write_json(path, {"seeds": n_seeds})
        return
    noted = read_json(path, "give another --out")
    seeds = {"seeds": noted.get("seeds")}
    if seeds != {"seeds": n_seeds}:
        raise UserError(
            f"--seeds {n_seeds}: {path} has {seeds}, and earlier entries were judged by that; "
            "give the same number, or another --out"
        )


def standing(judged: Sequence[Judged]) -> Judged | None:
    """Returns the last entry that won; None before the first."""
    winners = [entry for entry in judged if entry.wins]
    return winners[-1] if winners else None


def judge(name: str, variant: str, best: Judged | None, results: Sequence[Result]) -> Judged:
    """Returns the finished runs of an entry beside the standing best."""
    losses = []
    for result in results:
        loss = result.summary["eval_loss"]
        # A run that ended with NaN has none.
        loss = math.inf if loss is None else float(loss)
        losses.append(loss)

    against = None
    difference = p = math.nan
    if best is not None:
        against = best.variant
        difference = statistics.fmean(losses) - statistics.fmean(best.losses)
        p = _welch(losses, best.losses)

    def middle(key: str) -> float:
        return statistics.median(result.summary[key] for result in results)

    return Judged(
        name=name,
        variant=variant,
        against=against,
        losses=tuple(losses),
        difference=difference,
        p=p,
        tokens=middle("tokens"),
        seconds=middle("elapsed_s"),
        flops=middle("flops"),
    )


def _welch(losses: Sequence[float], others: Sequence[float]) -> float:
    """Returns the p-value of Welch's one-sided test that the mean of `losses` is lower."""
    if not all(map(math.isfinite, losses)):
        return 1.0
    from scipy import stats

    result: Any = stats.ttest_ind(losses, others, equal_var=False, alternative="less")
    return float(result.pvalue)


def _line(entry: Judged) -> str:
    shown = f"{entry.name}: held-out loss {statistics.fmean(entry.losses):.4f}"
    if entry.against is None:
        return shown
    verdict = "the best from now on" if entry.wins else "does not win"
    return f"{shown}, {entry.difference:+.4f} against {entry.against}, p={entry.p:.2g}: {verdict}"


def _write(judged: Sequence[Judged], out: pathlib.Path, n_seeds: int) -> None:
    entries = [dataclasses.asdict(entry) | {"wins": entry.wins} for entry in judged]
    # The page of tools.report draws them.
    content = {"seeds": n_seeds, "level": LEVEL, "entries": entries}
    write_json(out / "track.json", finite(content))
    with replacing(out / "report.md") as path:
        path.write_text(report(judged), encoding="utf-8")
    with replacing(out / "track.png") as path:
        _draw(judged, path)


def report(judged: Sequence[Judged]) -> str:
    """Returns the text of report.md: all entries with their figures, and the standing best."""
    rows: Rows = []
    for entry in judged:
        loss = "no number"
        if entry.is_sound:
            loss = f"{statistics.fmean(entry.losses):.4f} ± {statistics.stdev(entry.losses):.4f}"
        costs = (f"{entry.tokens / 1e6:.2f} M", f"{entry.seconds:.0f}", f"{entry.flops:.2e}")
        judgement = ("", loss, "", "")
        if entry.against is not None:
            judgement = (entry.against, loss, f"{entry.difference:+.4f}", f"{entry.p:.2g}")
        verdict = "best" if entry.wins else ""
        rows.append((entry.name, *judgement, *costs, verdict))

    best = standing(judged)
    assert best is not None  # the control always is
    tail = (
        f"Means and standard deviations of {len(best.losses)} seeds. p is Welch's, one-sided; "
        f"under {LEVEL:g} an entry is the best from then on. The best now: `{best.variant}`."
    )
    return f"# Track\n\n{markdown(_HEAD, rows)}\n\n{tail}\n"


def _draw(judged: Sequence[Judged], path: pathlib.Path) -> None:
    """Draw the staircase: each entry's seeds and mean, and the best loss up to it."""
    figure = figures.new_figure(1.5 + 0.8 * len(judged), 5, dpi=110)
    axes = figure.subplots()
    steps = []
    for place, entry in enumerate(judged):
        colour = "#0072b2" if entry.wins else "#9a9a9a"
        finite = [loss for loss in entry.losses if math.isfinite(loss)]
        axes.plot([place] * len(finite), finite, ".", color=colour, alpha=0.5)
        if finite:
            axes.plot(place, statistics.fmean(finite), "_", markersize=16, color=colour)
        best = standing(judged[: place + 1])
        assert best is not None  # the control always is
        steps.append(statistics.fmean(best.losses))

    axes.step(range(len(judged)), steps, where="post", color="#0072b2", linewidth=1.2)
    axes.set_xticks(range(len(judged)), [entry.name for entry in judged], rotation=60, ha="right")
    axes.set_ylabel("held-out loss, nats per predicted token")
    figures.style_panel(axes, grid="y")
    figures.save(figure, path)

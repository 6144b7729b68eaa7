"""Studies: sweeps over one recipe, compressions of their runs, and the tables that answer a question; each by one command."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cramjax.errors import UserError
from cramjax.stop import StopSignal
from cramjax.sweeps import grid, sweep
from cramjax.sweeps.sweep import Launch, Result

Rows = list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep of a study: `overrides` of the recipe as "key=value", `grids` as `tools.sweep` takes them, and what it shows."""

    title: str
    overrides: tuple[str, ...] = ()
    grids: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression:
    """What `tools.compress` makes of all runs of the `sweep`, finetuned for a `task`; `flags` are its own."""

    title: str
    sweep: str
    task: str
    flags: tuple[str, ...]

    def command(self, runs: Iterable[pathlib.Path], data_dir: str, out: pathlib.Path) -> list[str]:
        """The command line that compresses `runs` into `out`, or goes on there."""
        checkpoints = [word for run in runs for word in ("--checkpoint", str(run))]
        where = ["--task", self.task, "--data_dir", data_dir, "--out", str(out)]
        return [sys.executable, "-m", "tools.compress", *checkpoints, *where, *self.flags]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What there is so far, by the names of the study: results of sweeps, and entries of each compression's pareto.json."""

    sweeps: Mapping[str, Sequence[Result]]
    compressions: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(
        default_factory=dict
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Sweeps and compressions by the name of their folder; `report` makes of what was found the text of report.md."""

    recipe: str
    sweeps: Mapping[str, Sweep]
    compressions: Mapping[str, Compression] = dataclasses.field(default_factory=dict)
    report: Callable[[Study, Found], str]


def run(
    study: Study,
    overrides: Sequence[str],
    out: pathlib.Path,
    *,
    data_dir: str | None,
    launch: Launch = sweep.launch,
) -> int:
    """Do what is missing of `study` with more `overrides` for all runs; writes `out`/report.md. Returns an exit code, as `run_sweep`.

    `data_dir` has the tasks that compressed models are finetuned for. A sweep with a failed point is not compressed.

    Raises:
        UserError: where an override is of a key that the study sets, the tasks are missing (or not wanted), or as `run_sweep`.
    """
    points = _points(study, overrides)
    if study.compressions and data_dir is None:
        tasks = ", ".join(part.task for part in study.compressions.values())
        raise UserError(
            f"--data_dir: this study finetunes; give the folder with the data of {tasks}, or tfds"
        )
    if data_dir is not None and not study.compressions:
        raise UserError("--data_dir: this study finetunes nothing; leave it out")
    out.mkdir(parents=True, exist_ok=True)
    failed = set()
    for name, part in points.items():
        if code := sweep.run_sweep(part, out / name, launch=launch):
            failed.add(name)
        if code > 1:  # a signal; after a point that failed the other sweeps go on
            return code
        _report(study, points, out)
    for name, part in study.compressions.items():
        if part.sweep in failed:
            continue
        runs = [out / part.sweep / point.name for point in points[part.sweep]]
        if code := _compress(name, part.command(runs, data_dir, out / name), out / name, launch):
            failed.add(name)
        if code > 1:
            return code
        _report(study, points, out)
    return int(bool(failed))


def _points(study: Study, overrides: Sequence[str]) -> dict[str, list[grid.Point]]:
    """Those of each sweep."""
    points = {}
    for name, part in study.sweeps.items():
        own = {text.partition("=")[0] for text in part.overrides}
        for text in overrides:
            if (key := text.partition("=")[0]) in own:
                raise UserError(f"--config.{text}: the study sets {key} itself; leave it out")
        points[name] = grid.points_of(
            study.recipe, (*part.overrides, *overrides), grid.parse_grids(part.grids)
        )
    return points


def _compress(name: str, command: Sequence[str], out: pathlib.Path, launch: Launch) -> int:
    """Run `command` with its output in log.txt of `out`: 0, 1 where it failed, or the exit code of a signal."""
    out.mkdir(exist_ok=True)
    log = out / "log.txt"
    print(f"{name}  running  log: {log}", file=sys.stderr, flush=True)
    start = time.monotonic()
    with StopSignal() as stop:
        code = launch(command, log, stop)
        if code and not stop.requested:
            print(
                f"{name}  failed with exit code {code}: see the end of {log}",
                file=sys.stderr,
                flush=True,
            )
            return 1
        if not code:
            print(
                f"{name}  finished after {time.monotonic() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        return stop.exit_code


def _report(study: Study, points: Mapping[str, Sequence[grid.Point]], out: pathlib.Path) -> None:
    """Write report.md of what is in `out`."""
    sweeps = {
        done: sweep.find_results(points[done], out / done)
        for done in points
        if (out / done).is_dir()
    }
    files = {name: out / name / "pareto.json" for name in study.compressions}
    compressions = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.exists()
    }
    text = study.report(study, Found(sweeps=sweeps, compressions=compressions))
    (out / "report.md").write_text(text, encoding="utf-8")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median(values: Sequence[float]) -> str:
    """The median, and of several values the least and the largest."""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3f}{spread}"

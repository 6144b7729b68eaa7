"""Studies: sweeps over a recipe, compressions of their runs, and tables that answer a question."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cramjax.errors import UserError
from cramjax.files import check_types, read_json_objects, replacing
from cramjax.stop import StopSignal
from cramjax.sweeps import grid, sweep
from cramjax.sweeps.sweep import Launch, Result

Rows = list[tuple[str, ...]]
_NUMBER = (int, float)
# Of an entry of pareto.json, what reports read.
_ENTRY = {
    "model": (str,),
    "metric": (str,),
    "prune": _NUMBER,
    "bits": (int,),
    "bytes": _NUMBER,
    "value": _NUMBER,
    "values": (list,),
}
Points = Mapping[str, Sequence[grid.Point]]
"""Name of a sweep → its points."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepPart:
    """One sweep of a study.

    `title` says what it shows, `overrides` are "key=value" for the recipe, and `grids` are written
    as `tools.sweep` takes them.
    """

    title: str
    overrides: tuple[str, ...] = ()
    grids: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionPart:
    """One compression of a study: `tools.compress` for all runs of a `sweep`.

    The runs are finetuned for a `task`, or judged as they are if there is none; `flags` are those
    of the tool.
    """

    title: str
    sweep: str
    task: str | None
    flags: tuple[str, ...]

    def command(self, runs: Iterable[pathlib.Path], data_dir: str, out: pathlib.Path) -> list[str]:
        """Returns the command line that compresses `runs` into `out`, or goes on there."""
        command = [sys.executable, "-m", "cramjax", "compress"]
        for run in runs:
            command += ["--checkpoint", str(run)]
        if self.task is not None:
            command += ["--task", self.task, "--data_dir", data_dir]
        return [*command, "--out", str(out), *self.flags]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyResults:
    """The results of a study so far, by the names of its parts.

    `sweeps` has results of runs, `compressions` the entries of each pareto.json.
    """

    sweeps: Mapping[str, Sequence[Result]]
    compressions: Mapping[str, Sequence[Mapping[str, Any]]] = dataclasses.field(
        default_factory=dict
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Sweeps and compressions by the name of their folder.

    `report` makes the text of report.md from the results, and `pictures` draw files beside it.
    `files` are "key=value" for the recipe, where {data_dir} stands for the folder of the data.
    """

    recipe: str
    files: tuple[str, ...] = ()
    sweeps: Mapping[str, SweepPart]
    compressions: Mapping[str, CompressionPart] = dataclasses.field(default_factory=dict)
    report: Callable[[Study, StudyResults], str]
    pictures: Mapping[str, Callable[[StudyResults, pathlib.Path], None]] = dataclasses.field(
        default_factory=dict
    )


def run(
    study: Study,
    overrides: Sequence[str],
    out: pathlib.Path,
    *,
    data_dir: str | None,
    n_jobs: int = 1,
    launch: Launch = sweep.launch,
) -> int:
    """Do what is missing of `study` in `out`, and write report.md there after each part.

    A sweep with a failed point is not compressed.

    Args:
        study: the study.
        overrides: further "key=value" for all runs.
        out: folder of the study.
        data_dir: where the tasks are that compressed models are finetuned for, or the files that
            the runs read.
        n_jobs: runs at a time; compressions go one after the other.
        launch: starts a run or a compression.

    Returns:
        The exit code, as `run_sweep` returns it.

    Raises:
        UserError: if the study itself sets a key of `overrides`, if the data are missing or not
            wanted, or as `run_sweep` raises it.
    """
    data_dir = _check_data_dir(study, data_dir)
    points = _points(study, overrides, data_dir)
    out.mkdir(parents=True, exist_ok=True)
    failed = set()
    for name, sweep_points in points.items():
        code = sweep.run_sweep(sweep_points, out / name, n_jobs=n_jobs, launch=launch)
        if code:
            failed.add(name)
        # A signal ends the study; after a point that failed the other sweeps go on.
        if code > 1:
            return code
        _report(study, points, out)

    for name, part in study.compressions.items():
        if part.sweep in failed:
            continue
        runs = [out / part.sweep / point.name for point in points[part.sweep]]
        code = _compress(name, part.command(runs, data_dir, out / name), out / name, launch)
        if code:
            failed.add(name)
        if code > 1:
            return code
        _report(study, points, out)
    return int(bool(failed))


def _check_data_dir(study: Study, data_dir: str | None) -> str:
    """Returns `data_dir`, or "" for a study that reads nothing there. Raises UserError."""
    tasks = ", ".join(part.task for part in study.compressions.values() if part.task)
    if data_dir is None:
        if study.files:
            named = ", ".join(text.format(data_dir="DIR") for text in study.files)
            raise UserError(f"--data_dir: give the folder of the study's files ({named})")
        if tasks:
            raise UserError(
                "--data_dir: this study finetunes; "
                f"give the folder with the data of {tasks}, or tfds"
            )
        return ""
    if not tasks and not study.files:
        raise UserError("--data_dir: this study finetunes nothing; leave it out")
    return data_dir


def _points(study: Study, overrides: Sequence[str], data_dir: str) -> Points:
    """Returns the points of each sweep. Raises UserError."""
    points = {}
    files = [text.format(data_dir=data_dir) for text in study.files]
    for name, part in study.sweeps.items():
        set_by_study = {_key(text) for text in part.overrides}
        for text in overrides:
            if _key(text) in set_by_study:
                raise UserError(
                    f"--config.{text}: the study sets {_key(text)} itself; leave it out"
                )
        grids = grid.parse_grids(part.grids)
        own = (*files, *part.overrides)
        points[name] = grid.points_of(study.recipe, (*own, *overrides), grids)
    return points


def _key(override: str) -> str:
    return override.partition("=")[0]


def _compress(name: str, command: Sequence[str], out: pathlib.Path, launch: Launch) -> int:
    """Run `command` with its output in log.txt of `out`.

    Returns 0, 1 after a failure, or the exit code of a signal.
    """
    out.mkdir(exist_ok=True)
    log = out / "log.txt"
    _print(f"{name}  running  log: {log}")
    started = time.monotonic()
    with StopSignal() as stop:
        code = launch(command, log, stop)
        if code and not stop.requested:
            _print(f"{name}  failed with exit code {code}: see the end of {log}")
            return 1
        if not code:
            _print(f"{name}  finished after {time.monotonic() - started:.0f} s")
        return stop.exit_code


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _report(study: Study, points: Points, out: pathlib.Path) -> None:
    """Write report.md about what is in `out`."""
    sweeps = {}
    for name, sweep_points in points.items():
        if (out / name).is_dir():
            sweeps[name] = sweep.find_results(sweep_points, out / name)
    compressions = {}
    for name in study.compressions:
        file = out / name / "pareto.json"
        if file.exists():
            compressions[name] = read_entries(file)
    results = StudyResults(sweeps=sweeps, compressions=compressions)
    for name, draw in study.pictures.items():
        with replacing(out / name) as path:
            draw(results, path)
    text = study.report(study, results)
    with replacing(out / "report.md") as path:
        path.write_text(text, encoding="utf-8")


def read_entries(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the entries of a pareto.json; raises UserError if it is damaged."""
    cure = "delete it; the compression then writes it again"
    entries = read_json_objects(path, cure)
    if not entries:
        raise UserError(f"{path}: has no entry; {cure}")
    for entry in entries:
        check_types(entry, _ENTRY, path, cure)
    return entries


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median(values: Sequence[float]) -> str:
    """Returns the median as text, and for several values the least and the largest."""
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.3f}{spread}"

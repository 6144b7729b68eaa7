"""Sweeps: one run for each point of a grid (`grid.py`), each in a process of its own.

The process of the sweep resolves configurations, starts runs, and reads what they leave in their workdirs; it imports no JAX, so that
the memory of the device belongs to the run.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import operator
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from cramjax import console, pareto
from cramjax.config import stored
from cramjax.errors import UserError
from cramjax.stop import StopSignal
from cramjax.sweeps import plots
from cramjax.sweeps.grid import Point
from cramjax.training import metrics
from cramjax.training.workdir import Workdir

SUMMARY_COLUMNS = (
    "params", "steps", "tokens", "flops", "elapsed_s", "train_loss", "eval_loss", "eval_accuracy", "unigram_loss", "tokens_per_s",
    "mfu", "compile_s", "stop_reason",
)  # fmt: skip
PARETO_COLUMNS = {"pareto_params": "params", "pareto_flops": "flops", "pareto_s": "elapsed_s"}
"""Column of sweep.csv → the cost in the summary against which its front of `eval_loss` is taken."""

MAX_ERROR = 500

Launch = Callable[[Sequence[str], pathlib.Path, StopSignal], int]
"""(command line, log file, stop request) → exit code, negative for the signal that ended the process."""


@dataclasses.dataclass
class Result:
    """Where a point stands: `status` is pending, finished, failed (with `error`) or stopped; `summary` of a finished run."""

    point: Point
    workdir: pathlib.Path
    status: str = "pending"
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""


def find_results(points: Sequence[Point], out: pathlib.Path) -> list[Result]:
    """What earlier sweeps left in `out`: `finished` where a workdir has the summary of the same configuration, else `pending`.

    Raises:
        UserError: naming every folder whose run had another configuration, and the first keys that differ.
    """
    results, mistakes = [], []
    for point in points:
        result = Result(point, out / point.name)
        before = _read_config(result.workdir)
        if before is not None and before != point.config:
            mistakes.append(
                f"{result.workdir} has a run of another configuration ({_difference(before, point.config)})"
            )
        elif before is not None and (summary := _read_json(result.workdir / "summary.json")):
            result.status, result.summary = "finished", summary
        results.append(result)
    if mistakes:
        raise UserError("; ".join(mistakes) + ": delete the folder(s) or give another --out")
    return results


def _read_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    content = _read_json(workdir / "config.json")
    return None if content is None else stored.current(content)


def _read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    before, now = dict(_leaves(before)), dict(_leaves(now))
    keys = [key for key in (before | now) if before.get(key) != now.get(key)]
    return ", ".join(
        f"{key} is {before.get(key)!r} there, {now.get(key)!r} now" for key in keys[:3]
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def launch(command: Sequence[str], log: pathlib.Path, stop: StopSignal) -> int:
    """Run `command` with its output added to `log`; a stop request is passed on to it once, and its end awaited."""
    with log.open("ab") as output:
        # A group of its own: Ctrl-C on a terminal reaches a whole group, and a second signal ends a run without a checkpoint.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    told = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.2)
            if stop.requested and not told:
                child.send_signal(stop.signum)
                told = True
    finally:
        if child.poll() is None:
            child.terminate()


def run_sweep(
    points: Sequence[Point],
    out: pathlib.Path,
    *,
    launch: Launch = launch,
    lines: Lines | None = None,
) -> int:
    """Train each of `points` in `out`/name, one after the other; what is finished there is left alone, the rest goes on.

    After each point `out`/sweep.csv and sweep.png are written anew; a point's output is in log.txt of its folder.

    Returns:
        0; 1 where a point failed; 143 or 130 after SIGTERM or SIGINT, which the running point gets as well.

    Raises:
        UserError: where `out` cannot be written, is in use by another sweep, or holds runs of other configurations.
    """
    lines = lines or Lines()
    with StopSignal() as stop, _locked(out):
        results = find_results(points, out)
        write_results(results, out)
        lines.start(results)
        for number, result in enumerate(results, start=1):
            if result.status == "finished":
                continue
            if stop.requested:
                break
            lines.running(number, result)
            _run_point(result, launch, stop)
            write_results(results, out)
            lines.ended(number, result)
    lines.close(out, best(results))
    return stop.exit_code or int(any(result.status == "failed" for result in results))


@contextlib.contextmanager
def _locked(out: pathlib.Path):
    """The folder of the sweep, made and locked as that of a run."""
    try:
        folder = Workdir(out)
    except UserError as error:
        raise UserError(
            str(error).replace("--workdir", "--out", 1).replace("another run", "another sweep")
        ) from error
    with folder:
        yield


def _run_point(result: Result, launch: Launch, stop: StopSignal) -> None:
    """Train the point of `result` and set its status, summary and error."""
    result.workdir.mkdir(exist_ok=True)
    log = result.workdir / "log.txt"
    start = log.stat().st_size if log.exists() else 0
    code = launch(result.point.command(result.workdir), log, stop)
    summary = _read_json(result.workdir / "summary.json")
    if code and not stop.requested:
        result.error = _error(log, start, code)
    # A run with a summary has trained to its end, also where it was signalled then or failed at what comes after.
    if summary:
        result.status, result.summary = "finished", summary
    else:
        result.status = "stopped" if stop.requested else "failed"


def _error(log: pathlib.Path, start: int, code: int) -> str:
    """Why a run failed, from what it wrote to `log` after byte `start`: its error, or else its last line; and how it ended."""
    text = log.read_bytes()[start:].decode(errors="replace").strip() if log.exists() else ""
    if errors := list(re.finditer(r"^error: ", text, flags=re.MULTILINE)):
        return " ".join(text[errors[-1].end() :].split())[:MAX_ERROR]
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {text.splitlines()[-1][:MAX_ERROR]}" if text else how


def write_results(results: Sequence[Result], out: pathlib.Path) -> None:
    """Write `out`/sweep.csv, one row a point, and sweep.png where a point has been evaluated; each whole or as it was before."""
    _replace(out / "sweep.csv", lambda path: path.write_text(_csv(results), encoding="utf-8"))
    drawn = [_drawn(result) for result in results]
    if any(run.curve or run.summary for run in drawn):
        keys = ", ".join(_shown(results[0].point.values))
        _replace(out / "sweep.png", lambda path: plots.plot(drawn, keys, path))


def _replace(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}")
    write(temporary)
    os.replace(temporary, path)


def _csv(results: Sequence[Result]) -> str:
    """The text of sweep.csv; what a point does not have is empty, and the columns of fronts are 1 or 0 in finished points."""
    grid_keys = list(results[0].point.values) if results else []
    columns = ["point", "status", *grid_keys, *SUMMARY_COLUMNS, "workdir", *PARETO_COLUMNS, "error"]
    fronts = [
        pareto.front([_cost_and_loss(result, cost) for result in results])
        for cost in PARETO_COLUMNS.values()
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for place, result in enumerate(results):
        on_front = [int(front[place]) if result.summary else "" for front in fronts]
        numbers = [result.summary.get(column) for column in SUMMARY_COLUMNS]
        identity = [result.point.name, result.status, *result.point.values.values()]
        writer.writerow([*identity, *numbers, result.workdir, *on_front, result.error])
    return text.getvalue()


def _cost_and_loss(result: Result, cost: str) -> tuple[float | None, float | None]:
    return result.summary.get(cost), result.summary.get("eval_loss")


def _drawn(result: Result) -> plots.Drawn:
    label = ", ".join(_shown(result.point.values).values())
    evals = [
        line
        for line in metrics.read(result.workdir / "metrics.jsonl")
        if line.get("eval_loss") is not None
    ]
    return plots.Drawn(
        label=label if result.status == "finished" else f"{label} ({result.status})",
        summary=result.summary or None,
        curve=evals,
    )


def _shown(values: Mapping[str, str]) -> dict[str, str]:
    """The grid's `values` without the seed, where there are others: runs that differ in it alone are one setting."""
    return {key: value for key, value in values.items() if key != "seed"} or dict(values)


def best(results: Sequence[Result]) -> tuple[str, float] | None:
    """The setting with the lowest median held-out loss over its finished seeds, and that loss in nats; None before any is finished."""
    losses: dict[str, list[float]] = {}
    for result in results:
        if (loss := result.summary.get("eval_loss")) is not None:
            shown = ", ".join(
                f"{key}={value}" for key, value in _shown(result.point.values).items()
            )
            losses.setdefault(shown, []).append(loss)
    medians = {shown: statistics.median(found) for shown, found in losses.items()}
    return min(medians.items(), key=operator.itemgetter(1), default=None)


class Lines:
    """What a person sees of a sweep on stderr: a line for each point that starts or ends, the running one live on a terminal."""

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic):
        """Writes to `stream` (default stderr); `now` in seconds."""
        self._stream, self._now = stream or sys.stderr, now
        self._durations: list[float] = []
        self._status = None

    def start(self, results: Sequence[Result]) -> None:
        """Say how many points there are and which are finished already."""
        self._n, self._left = len(results), sum(result.status != "finished" for result in results)
        self._print(f"{self._n} points, {self._n - self._left} of them finished before")
        self._durations = [
            result.summary["elapsed_s"] for result in results if result.status == "finished"
        ]

    def running(self, number: int, result: Result) -> None:
        """Point `number`, counted from 1, starts."""
        self._started = self._now()
        text = f"{number}/{self._n}  {result.point.name}  running{self._eta()}"
        if self._stream.isatty():
            from rich.console import Console

            self._status = Console(file=self._stream).status(text.replace("[", r"\["))
            self._status.start()
        else:
            self._print(f"{text}  log: {result.workdir / 'log.txt'}")

    def ended(self, number: int, result: Result) -> None:
        """Point `number` has finished, failed or been stopped."""
        self._clear()
        took_s = self._now() - self._started
        text = f"{number}/{self._n}  {result.point.name}  {result.status} after {console.duration(took_s)}"
        if result.status == "finished":
            self._durations.append(took_s)
            text += f", held-out loss {_loss(result.summary.get('eval_loss'))}"
        if result.error:
            text += f": {result.error} ({result.workdir / 'log.txt'})"
        self._left -= result.status != "stopped"
        self._print(text + self._eta())

    def close(self, out: pathlib.Path, best: tuple[str, float] | None = None) -> None:
        """Say which setting was best and where the results are."""
        self._clear()
        if best:
            self._print(f"best: {best[0]}, held-out loss {best[1]:.3f}")
        files = [out / name for name in ("sweep.csv", "sweep.png") if (out / name).exists()]
        self._print(f"results: {', '.join(map(str, files))}")

    def _clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _eta(self) -> str:
        """Time for the points left at the mean of those done; nothing before the first is."""
        if not self._durations or not self._left:
            return ""
        mean_s = sum(self._durations) / len(self._durations)
        return f"  {console.time_left(self._left * mean_s)}"


def _loss(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"

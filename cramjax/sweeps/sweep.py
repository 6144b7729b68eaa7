"""Sweeps: one run for each point of a grid (`grid.py`), each in a process of its own.

Runs go one after the other, or several at a time on shares of the machine (`shares.py`).

The process of the sweep resolves configurations, starts runs, and reads what they leave in their
workdirs. It imports no JAX, so the memory of the device belongs to the run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import csv
import dataclasses
import fcntl
import io
import operator
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from cramjax import console, pareto
from cramjax.config import stored
from cramjax.errors import UserError
from cramjax.files import check_types, read_json, replacing
from cramjax.stop import PARENT, StopSignal
from cramjax.sweeps import plots, shares
from cramjax.sweeps.grid import Point
from cramjax.sweeps.shares import Share
from cramjax.training import metrics
from cramjax.training.workdir import Workdir

if TYPE_CHECKING:
    from rich.status import Status

SUMMARY_COLUMNS = (
    "params", "steps", "tokens", "flops", "elapsed_s", "train_loss", "eval_loss", "eval_accuracy",
    "unigram_loss", "tokens_per_s", "mfu", "compile_s", "stop_reason",
)  # fmt: skip
PARETO_COLUMNS = {"pareto_params": "params", "pareto_flops": "flops", "pareto_s": "elapsed_s"}
"""Column of sweep.csv → the cost in the summary; the column marks the front of `eval_loss`."""

MAX_ERROR = 500

_NUMBER = (int, float)
# What is read of a summary.
_SUMMARY = dict.fromkeys(("params", "steps", "tokens", "flops", "elapsed_s"), _NUMBER) | {
    # A run that ended with NaN has none.
    "eval_loss": (*_NUMBER, type(None))
}

Launch = Callable[[Sequence[str], pathlib.Path, StopSignal], int]
"""(command line, log file, stop request) → exit code.

The code is negative for the signal that ended the process.
"""


@dataclasses.dataclass
class Result:
    """The state of a point.

    Attributes:
        point: the point.
        workdir: the folder of its run.
        status: "pending", "finished", "failed" or "stopped".
        summary: content of summary.json of a finished run.
        error: why a run failed, or what failed after its end.
    """

    point: Point
    workdir: pathlib.Path
    status: str = "pending"
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""


def find_results(points: Sequence[Point], out: pathlib.Path) -> list[Result]:
    """Returns what earlier sweeps left in `out`, a result a point.

    A point is finished if its workdir has a summary and the same configuration, else pending.

    Raises:
        UserError: naming every folder whose run had another configuration, and the first keys that
            differ.
    """
    results = []
    mistakes = []
    for point in points:
        result = Result(point, out / point.name)
        results.append(result)
        before = _read_config(result.workdir)
        if before is None:
            continue
        # The run has replaced it by the amount for its devices.
        if point.config["data"]["max_mb"] == "budget":
            before["data"]["max_mb"] = "budget"
        if before != point.config:
            difference = _difference(before, point.config)
            mistakes.append(f"{result.workdir} has a run of another configuration ({difference})")
            continue
        summary = _read_summary(result.workdir)
        if summary:
            result.status = "finished"
            result.summary = summary

    if mistakes:
        raise UserError("; ".join(mistakes) + ": delete the folder(s) or give another --out")
    return results


def _read_config(workdir: pathlib.Path) -> dict[str, Any] | None:
    path = workdir / "config.json"
    if not path.exists():
        return None
    cure = "delete its folder or give another --out"
    return stored.current(read_json(path, cure), str(path), cure)


def _read_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Returns the summary of a finished run; None if there is none that can be used.

    The next start of a finished run without one writes it again.
    """
    path = workdir / "summary.json"
    try:
        summary = read_json(path, "")
        check_types(summary, _SUMMARY, path, "")
    except UserError:
        return None
    return summary


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the first keys in which two configurations differ, with both values."""
    there = dict(_leaves(before))
    here = dict(_leaves(now))
    keys = [key for key in (there | here) if there.get(key) != here.get(key)]
    return ", ".join(
        f"{key} is {there.get(key)!r} there, {here.get(key)!r} now" for key in keys[:3]
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yields the nested `values` with their keys joined by dots."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def launch(command: Sequence[str], log: pathlib.Path, stop: StopSignal) -> int:
    """Run `command`, add its output to `log`, and return its exit code.

    A stop request is passed on to it once; its end is awaited. If this process dies, the command
    stops as by SIGTERM. A command that still writes to `log`, after its parent died, is waited for.
    """
    with log.open("ab") as output:
        if not _is_alone(output, log, stop):
            return stop.exit_code
        # A group of its own, because Ctrl-C on a terminal reaches a whole group, and a second one
        # ends a run without a checkpoint.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {PARENT: str(os.getpid())},
            process_group=0,
        )

    is_told = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.2)
            if stop.signum is not None and not is_told:
                child.send_signal(stop.signum)
                is_told = True
    finally:
        if child.poll() is None:
            child.terminate()


def _is_alone(output: BinaryIO, log: pathlib.Path, stop: StopSignal) -> bool:
    """Wait for the command that has `log` open; returns False if a signal comes first."""
    is_told = False
    while not stop.requested:
        # The command inherits the lock with its output, and has it until its end.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if not is_told:
            console.announce(f"{log}: a command of before is still saving; waiting for its end")
            is_told = True
        time.sleep(0.2)
    return False


def run_sweep(
    points: Sequence[Point],
    out: pathlib.Path,
    *,
    n_jobs: int = 1,
    launch: Launch = launch,
    lines: Lines | None = None,
) -> int:
    """Train each of `points` in a folder of `out`, one after the other or several at a time.

    Finished points are left alone, the others go on. After each point sweep.csv and sweep.png are
    written anew. The output of a point is in log.txt of its folder.

    Args:
        points: the points.
        out: folder of the sweep.
        n_jobs: runs at a time, each on its share of the machine.
        launch: starts a run.
        lines: what is printed.

    Returns:
        0; 1 if a point failed; 128 + n after signal n, which the running points get as well.

    Raises:
        UserError: if `out` cannot be written, is in use by another sweep, or holds runs of other
            configurations, or for more jobs than the machine has shares.
    """
    lines = lines or Lines()
    parts = shares.divide(n_jobs)
    with StopSignal() as stop, _locked(out):
        results = find_results(points, out)
        write_results(results, out)
        lines.start(results, n_jobs)
        queue = _Queue(results, out, launch, lines, stop)
        if n_jobs == 1:
            queue.work(parts[0])
        else:
            with concurrent.futures.ThreadPoolExecutor(n_jobs) as pool:
                for done in [pool.submit(queue.work, part) for part in parts]:
                    done.result()

    lines.close(out, best(results))
    has_failed = any(result.status == "failed" for result in results)
    return stop.exit_code or int(has_failed)


@contextlib.contextmanager
def _locked(out: pathlib.Path) -> Iterator[None]:
    """Make and lock the folder of the sweep, as that of a run."""
    try:
        folder = Workdir(out)
    except UserError as error:
        message = str(error).replace("--workdir", "--out", 1)
        raise UserError(message.replace("another run", "another sweep")) from error
    with folder:
        yield


class _Queue:
    """The points that are not finished, for one or several threads that train them."""

    def __init__(
        self,
        results: Sequence[Result],
        out: pathlib.Path,
        launch: Launch,
        lines: Lines,
        stop: StopSignal,
    ):
        self._results, self._out = results, out
        self._launch, self._lines, self._stop = launch, lines, stop
        numbered = enumerate(results, start=1)
        self._waiting = iter([entry for entry in numbered if entry[1].status != "finished"])
        # Of the points that wait, the files of the sweep and the lines.
        self._lock = threading.Lock()

    def work(self, share: Share) -> None:
        """Train points on `share` until none waits or a signal comes."""
        share.take()
        while not self._stop.requested:
            with self._lock:
                entry = next(self._waiting, None)
                if entry is None:
                    return
                self._lines.running(*entry)
            number, result = entry
            _run_point(result, share, self._launch, self._stop)
            with self._lock:
                write_results(self._results, self._out)
                self._lines.ended(number, result)


def _run_point(result: Result, share: Share, launch: Launch, stop: StopSignal) -> None:
    """Train the point of `result` on `share` and set its status, summary and error."""
    result.workdir.mkdir(exist_ok=True)
    log = result.workdir / "log.txt"
    start = log.stat().st_size if log.exists() else 0
    code = launch(share.command(result.point.command(result.workdir)), log, stop)
    if code and not stop.requested:
        result.error = error_of(log, start, code)

    # A run with a summary has trained to its end, also if it then got a signal or failed.
    summary = _read_summary(result.workdir)
    if summary:
        result.status = "finished"
        result.summary = summary
    else:
        result.status = "stopped" if stop.requested else "failed"


def error_of(log: pathlib.Path, start: int, code: int) -> str:
    """Returns why a run failed: its last error, or how it ended and its last line.

    Args:
        log: its output.
        start: the byte from which the output is that of this run.
        code: its exit code, negative for a signal.
    """
    text = ""
    if log.exists():
        text = log.read_bytes()[start:].decode(errors="replace").strip()
    errors = list(re.finditer(r"^error: ", text, flags=re.MULTILINE))
    if errors:
        return " ".join(text[errors[-1].end() :].split())[:MAX_ERROR]

    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {text.splitlines()[-1][:MAX_ERROR]}" if text else how


def write_results(results: Sequence[Result], out: pathlib.Path) -> None:
    """Write sweep.csv to `out`, a row a point, and sweep.png if a point has been evaluated.

    A crash leaves the old file or the new one.
    """
    text = _csv(results)
    with replacing(out / "sweep.csv") as path:
        path.write_text(text, encoding="utf-8")
    drawn = [_drawn(result) for result in results]
    if any(point.curve or point.summary for point in drawn):
        keys = ", ".join(_shown(results[0].point.values))
        with replacing(out / "sweep.png") as path:
            plots.plot(drawn, keys, path)


def _csv(results: Sequence[Result]) -> str:
    """Returns the text of sweep.csv.

    Cells without a value are empty. The columns of fronts are 1 or 0 for finished points.
    """
    grid_keys = list(results[0].point.values) if results else []
    columns = ["point", "status", *grid_keys, *SUMMARY_COLUMNS, "workdir", *PARETO_COLUMNS, "error"]
    fronts = []
    for cost in PARETO_COLUMNS.values():
        pairs = [(result.summary.get(cost), result.summary.get("eval_loss")) for result in results]
        fronts.append(pareto.front(pairs))

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for place, result in enumerate(results):
        on_front = [int(front[place]) if result.summary else "" for front in fronts]
        numbers = [result.summary.get(column) for column in SUMMARY_COLUMNS]
        identity = [result.point.name, result.status, *result.point.values.values()]
        writer.writerow([*identity, *numbers, result.workdir, *on_front, result.error])
    return text.getvalue()


def _drawn(result: Result) -> plots.Drawn:
    """Returns the point of a result in the picture."""
    label = ", ".join(_shown(result.point.values).values())
    if result.status != "finished":
        label += f" ({result.status})"
    lines = metrics.read(result.workdir / "metrics.jsonl")
    curve = [line for line in lines if line.get("eval_loss") is not None]
    return plots.Drawn(label=label, summary=result.summary or None, curve=curve)


def _shown(values: Mapping[str, str]) -> dict[str, str]:
    """Returns a point's `values` without the seed, unless that is the only one.

    Runs that differ in their seed alone are one setting.
    """
    return {key: value for key, value in values.items() if key != "seed"} or dict(values)


def best(results: Sequence[Result]) -> tuple[str, float] | None:
    """Returns the best setting and its loss in nats, or None before a run is finished.

    It has the lowest median held-out loss over its finished seeds.
    """
    losses: dict[str, list[float]] = {}
    for result in results:
        loss = result.summary.get("eval_loss")
        if loss is not None:
            shown = _shown(result.point.values)
            setting = ", ".join(f"{key}={value}" for key, value in shown.items())
            losses.setdefault(setting, []).append(loss)
    medians = {setting: statistics.median(values) for setting, values in losses.items()}
    return min(medians.items(), key=operator.itemgetter(1), default=None)


class Lines:
    """Prints a line for each point that starts or ends; on a terminal the last one is live.

    Args:
        stream: written to; default: stderr.
        now: returns seconds.
    """

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._now = now
        self._n_points = 0
        self._n_left = 0
        self._n_jobs = 1
        self._durations: list[float] = []
        self._started: dict[int, float] = {}
        # The lines of points that run, on a terminal.
        self._running: dict[int, str] = {}
        self._status: Status | None = None

    def start(self, results: Sequence[Result], n_jobs: int = 1) -> None:
        """Print how many points there are and how many are finished already."""
        self._n_jobs = n_jobs
        finished = [result for result in results if result.status == "finished"]
        self._n_points = len(results)
        self._n_left = len(results) - len(finished)
        self._durations = [result.summary["elapsed_s"] for result in finished]
        self._print(f"{self._n_points} points, {len(finished)} of them finished before")

    def running(self, number: int, result: Result) -> None:
        """Print that point `number`, counted from 1, starts."""
        self._started[number] = self._now()
        text = f"{number}/{self._n_points}  {result.point.name}  running{self._eta()}"
        if self._stream.isatty():
            self._running[number] = text
            self._show_last()
        else:
            self._print(f"{text}  log: {result.workdir / 'log.txt'}")

    def ended(self, number: int, result: Result) -> None:
        """Print that point `number` has finished, failed or been stopped."""
        self._clear()
        took_s = self._now() - self._started[number]
        text = f"{number}/{self._n_points}  {result.point.name}  {result.status}"
        text += f" after {console.duration(took_s)}"
        if result.status == "finished":
            self._durations.append(took_s)
            text += f", held-out loss {_loss(result.summary.get('eval_loss'))}"
        if result.error:
            text += f": {result.error} ({result.workdir / 'log.txt'})"
        self._n_left -= result.status != "stopped"
        self._print(text + self._eta())
        self._running.pop(number, None)
        self._show_last()

    def close(self, out: pathlib.Path, best: tuple[str, float] | None = None) -> None:
        """Print which setting was best and where the results are."""
        self._clear()
        if best:
            setting, loss = best
            self._print(f"best: {setting}, held-out loss {loss:.3f}")
        files = [out / name for name in ("sweep.csv", "sweep.png") if (out / name).exists()]
        self._print(f"results: {', '.join(map(str, files))}")

    def _show_last(self) -> None:
        """Show the point that started last, of those that still run."""
        self._clear()
        if self._running:
            from rich.console import Console

            text = self._running[max(self._running)]
            self._status = Console(file=self._stream).status(text.replace("[", r"\["))
            self._status.start()

    def _clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _eta(self) -> str:
        """Returns the time left at the mean of the finished points; empty before the first."""
        if not self._durations or not self._n_left:
            return ""
        mean_s = sum(self._durations) / len(self._durations)
        return f"  {console.time_left(self._n_left * mean_s / self._n_jobs)}"


def _loss(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"

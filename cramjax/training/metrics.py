"""The outputs for a run's numbers: metrics.jsonl, TensorBoard and Weights & Biases.

All take plain floats. The loop reads device values, one step late so that the device never waits.
The TensorBoard files are written with the `tensorboard` package's record writer, which imports no
TensorFlow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pathlib
import socket
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

# These classes are generated at run time, so a type checker does not see them.
Event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]

_log = logging.getLogger("cramjax")


class Sink(Protocol):
    """A receiver of a run's numbers; one that raises is dropped, and the run goes on."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        ...

    def close(self) -> None:
        """Finish: there are no more numbers."""
        ...


class MetricsWriter:
    """Writes numbers to `<workdir>/metrics.jsonl` and passes them to the sinks.

    A sink that raises is dropped with one warning: it never stops a run.

    Args:
        workdir: the folder of the run.
        resumed_step: lines of later steps are cut from an existing file, because they come again.
        keeps_evaluation: whether an evaluation of `resumed_step` itself stays; it does not if it
            comes again.
        tensorboard: whether to write TensorBoard's files, in the folder tb.
        wandb_project: a project of Weights & Biases, or None.
        config: the configuration, for Weights & Biases.
        sinks: further receivers.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resumed_step: int = 0,
        keeps_evaluation: bool = True,
        tensorboard: bool = False,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
        sinks: Sequence[Sink] = (),
    ):
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        _cut_after(self._path, resumed_step, keeps_evaluation)
        self._file = self._path.open("a", encoding="utf-8")
        self._sinks: list[Sink] = list(sinks)

        if tensorboard:
            folder = pathlib.Path(workdir) / "tb"
            self._open("TensorBoard", lambda: TensorBoard(folder, resumed_step))
        if wandb_project:
            self._open("Weights & Biases", lambda: Wandb(wandb_project, workdir, config or {}))

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add one line with `step` and `values`; sinks get the values that are not None.

        Infinity and NaN become null in the file, so that every line is JSON.
        """
        line = {"step": step} | {name: _jsonable(value) for name, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

        known = {name: value for name, value in values.items() if value is not None}
        for sink in list(self._sinks):
            try:
                sink.write(step, known)
            # A logging service may raise any kind of error.
            except Exception as error:
                _warn(type(sink).__name__, error)
                self._sinks.remove(sink)

    def close(self) -> None:
        """Close the file and the sinks."""
        self._file.close()
        for sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                _warn(type(sink).__name__, error)
        self._sinks = []

    def _open(self, name: str, make: Callable[[], Sink]) -> None:
        try:
            self._sinks.append(make())
        except Exception as error:
            _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    _log.warning("%s is off for the rest of this run: %s: %s", name, type(error).__name__, error)


class TensorBoard:
    """Writes event files for TensorBoard into a folder."""

    def __init__(self, directory: pathlib.Path, resumed_step: int):
        """Open a file; TensorBoard drops the steps after `resumed_step` of an earlier start."""
        directory.mkdir(parents=True, exist_ok=True)
        seconds = time.time_ns() // 10**9
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._writer = RecordWriter((directory / name).open("ab"))
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))

        restart = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=resumed_step + 1, session_log=restart))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event with all numbers of a step."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        summary = Summary(value=scalars)
        self._add(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


class Silence:
    """A writer that discards; for all processes but process 0."""

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Discard the numbers."""

    def close(self) -> None:
        """Do nothing."""


class Wandb:
    """A Weights & Biases run; the package is an extra (`pip install cramjax[wandb]`)."""

    def __init__(self, project: str, workdir: str | os.PathLike, config: Mapping[str, Any]):
        """Start the run that is named after the workdir, or go on with it."""
        # An extra, which need not be installed.
        import wandb  # pyright: ignore[reportMissingImports]

        path = pathlib.Path(workdir).resolve()
        # The same folder is the same run, so that a restart goes on in it.
        run_id = f"{path.name}-{zlib.crc32(str(path).encode()):08x}"
        self._run = wandb.init(
            project=project,
            name=path.name,
            id=run_id,
            resume="allow",
            dir=str(path),
            config=dict(config),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Upload the rest."""
        self._run.finish()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, without one that a crash cut short.

    A missing file has no lines.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _cut_after(path: pathlib.Path, step: int, keeps_evaluation: bool) -> None:
    """Rewrite a file with the lines that do not come again after a checkpoint of `step`.

    A crash leaves the old file or the new one. See `MetricsWriter` for `keeps_evaluation`.
    """
    if not path.exists():
        return
    kept = []
    for line in read(path):
        comes_again = line["step"] == step and "eval_loss" in line and not keeps_evaluation
        if line["step"] <= step and not comes_again:
            kept.append(json.dumps(line) + "\n")
    temporary = path.with_name(f".{path.name}.cut")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _jsonable(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

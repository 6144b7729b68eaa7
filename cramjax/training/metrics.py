"""The outputs for a run's numbers: metrics.jsonl, TensorBoard and Weights & Biases.

All take plain floats. The loop reads device values, one step late so that the device never waits.
The TensorBoard files are written with the `tensorboard` package's record writer, which imports no
TensorFlow.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import pathlib
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from cramjax.errors import UserError
from cramjax.files import replacing

# These classes are generated at run time, so a type checker does not see them.
Event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]

UPLOAD_S = 120.0
"""Seconds that the end of a run waits for a logging service."""

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

    Nothing of this stops a run. A sink that raises is dropped with one warning. Lines that the disk
    does not take are kept in memory, and written in order when it does.

    Args:
        workdir: the folder of the run.
        resumed_step: lines of later steps are cut from an existing file, because they come again.
        keeps_evaluation: whether an evaluation of `resumed_step` itself stays; it does not if it
            comes again.
        keeps_scores: the same for the scores of what the network writes.
        tensorboard: whether to write TensorBoard's files, in the folder tb.
        wandb_project: a project of Weights & Biases, or None.
        trackio_project: a project of trackio, or None.
        config: the configuration, for both.
        sinks: further receivers.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resumed_step: int = 0,
        keeps_evaluation: bool = True,
        keeps_scores: bool = True,
        tensorboard: bool = False,
        wandb_project: str | None = None,
        trackio_project: str | None = None,
        config: Mapping[str, Any] | None = None,
        sinks: Sequence[Sink] = (),
    ):
        path = pathlib.Path(workdir) / "metrics.jsonl"
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file; move it away")
        again = {"eval_loss": not keeps_evaluation, "bleu": not keeps_scores}
        cut_after(path, resumed_step, [name for name, comes in again.items() if comes])
        self._lines = LineFile(path)
        self._sinks = [(type(sink).__name__, sink) for sink in sinks]

        if tensorboard:
            folder = pathlib.Path(workdir) / "tb"
            self._open("TensorBoard", lambda: TensorBoard(folder, resumed_step))
        if wandb_project:
            self._open("Weights & Biases", lambda: open_wandb(wandb_project, workdir, config or {}))
        if trackio_project:
            self._open("trackio", lambda: open_trackio(trackio_project, workdir, config or {}))

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add one line with `step` and `values`; sinks get the values that are not None.

        Infinity and NaN become null in the file, so that every line is JSON.
        """
        line = {"step": step} | {name: _jsonable(value) for name, value in values.items()}
        self._lines.write(json.dumps(line, allow_nan=False))

        known = {name: value for name, value in values.items() if value is not None}
        for name, sink in list(self._sinks):
            try:
                sink.write(step, known)
            # A logging service may raise any kind of error.
            except Exception as error:
                _warn(name, error)
                self._sinks.remove((name, sink))

    def close(self) -> None:
        """Close the file and the sinks."""
        self._lines.close()
        for name, sink in self._sinks:
            try:
                sink.close()
            except Exception as error:
                _warn(name, error)
        self._sinks = []

    def _open(self, name: str, make: Callable[[], Sink]) -> None:
        try:
            self._sinks.append((name, make()))
        except Exception as error:
            _warn(name, error)


class LineFile:
    """A file of lines, each of them whole; one that cannot be written now is written later.

    A full disk or a folder that is away gives one warning. A file that was deleted is made again
    with all its lines, because the open one still has them.
    """

    def __init__(self, path: pathlib.Path):
        """Open the file, made if it is missing; new lines come after those that are there."""
        self._path = path
        self._waiting: list[bytes] = []
        self._has_warned = False
        self._file: io.FileIO | None = None
        # The size of the file, up to the last whole line.
        self._end = 0
        self._attempt()

    def write(self, line: str) -> None:
        """Add `line` after those that wait, and try to write them all."""
        self._waiting.append(f"{line}\n".encode())
        self._attempt()

    def close(self) -> None:
        """Try once more to write what waits, and close; a second call does nothing."""
        if self._waiting:
            self._attempt()
        if self._waiting:
            _log.warning("%s: the last %d lines are lost", self._path, len(self._waiting))
            self._waiting = []
        if self._file is not None:
            # A network's file system may say only now that the disk is full.
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _attempt(self) -> None:
        try:
            self._file = self._opened()
            self._append(self._file, b"".join(self._waiting))
            self._waiting = []
        except OSError as error:
            if not self._has_warned:
                _log.warning(
                    "%s: cannot be written (%s); the run goes on, and the lines are kept for later",
                    self._path,
                    error.strerror,
                )
            self._has_warned = True

    def _opened(self) -> io.FileIO:
        """Returns the file that is at the path now."""
        before = self._file
        if before is not None and _has_path(before, self._path):
            return before
        file = io.FileIO(self._path, "a+")
        self._end = os.fstat(file.fileno()).st_size

        # A file with lines is one that somebody has put there: it is left as it is.
        if before is not None and self._end == 0:
            self._append(file, _content(before))
        return file

    def _append(self, file: io.FileIO, content: bytes) -> None:
        """Write `content` at the end of the file, or nothing of it."""
        size = os.fstat(file.fileno()).st_size
        if size > self._end:
            # A part of a line, which could not be taken back when it failed.
            file.truncate(self._end)
        self._end = min(size, self._end)
        try:
            written = 0
            while written < len(content):
                written += file.write(content[written:])
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(self._end)
            raise
        self._end += len(content)


def _content(file: io.FileIO) -> bytes:
    """Returns the bytes of an open file that may be deleted; a network's may have lost them."""
    try:
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
    except OSError:
        return b""


def _has_path(file: io.FileIO, path: pathlib.Path) -> bool:
    """Returns whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


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


class Tracker:
    """A run of a service for experiments, as Weights & Biases and trackio alike have it."""

    def __init__(self, run: Any, remedy: str):
        """Take a run of the service that was started.

        Args:
            run: has `log(values, step=…)` and `finish()`.
            remedy: what to do if the rest cannot be uploaded at the end.
        """
        self._run = run
        self._remedy = remedy

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Upload the rest; raises TimeoutError if that takes longer than `UPLOAD_S`."""
        errors: list[Exception] = []

        def finish() -> None:
            try:
                self._run.finish()
            except Exception as error:
                errors.append(error)

        uploading = threading.Thread(target=finish, name="cramjax-tracker", daemon=True)
        uploading.start()
        uploading.join(UPLOAD_S)
        if uploading.is_alive():
            raise TimeoutError(f"not uploaded within {UPLOAD_S:.0f} s; {self._remedy}")
        if errors:
            raise errors[0]


def open_wandb(project: str, workdir: str | os.PathLike, config: Mapping[str, Any]) -> Tracker:
    """Start the run of Weights & Biases that belongs to the workdir, or go on with it.

    The package is an extra (`pip install cramjax[wandb]`).
    """
    # An extra, which need not be installed.
    import wandb  # pyright: ignore[reportMissingImports]

    path = pathlib.Path(workdir).resolve()
    run = wandb.init(
        project=project,
        name=path.name,
        id=_run_id(path),
        resume="allow",
        dir=str(path),
        config=dict(config),
    )
    return Tracker(run, "`wandb sync` uploads later")


def open_trackio(project: str, workdir: str | os.PathLike, config: Mapping[str, Any]) -> Tracker:
    """Start the run of trackio that belongs to the workdir, or go on with it.

    It needs no account: `trackio show` draws it on this machine. The package is an extra
    (`pip install cramjax[trackio]`).
    """
    # An extra, which need not be installed.
    import trackio  # pyright: ignore[reportMissingImports]

    path = pathlib.Path(workdir).resolve()
    run = trackio.init(
        project=project, name=_run_id(path), resume="allow", config=dict(config), embed=False
    )
    return Tracker(run, "metrics.jsonl has all lines")


def _run_id(path: pathlib.Path) -> str:
    """Returns the name of a workdir's run: a restart in the same folder goes on in it."""
    return f"{path.name}-{zlib.crc32(str(path).encode()):08x}"


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


def cut_after(path: pathlib.Path, step: int, again: Sequence[str]) -> None:
    """Rewrite a file of lines with the lines that do not come again after a checkpoint of `step`.

    Those of `step` itself with a number in `again` do. A crash leaves the old file or the new one.
    """
    if not path.exists():
        return
    kept = []
    for line in read(path):
        comes_again = line["step"] == step and any(name in line for name in again)
        if line["step"] <= step and not comes_again:
            kept.append(json.dumps(line) + "\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _jsonable(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

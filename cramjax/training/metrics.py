"""Where a run's numbers go: metrics.jsonl always, TensorBoard and Weights & Biases on top.

Takes plain floats; reading device values, one step late so that the device never waits, is the loop's
business. The TensorBoard files are written through the `tensorboard` package's record writer, which imports
no TensorFlow.
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

_log = logging.getLogger("cramjax")


class Sink(Protocol):
    """Something numbers are sent to; allowed to fail."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        ...

    def close(self) -> None:
        """Finish."""
        ...


class MetricsWriter:
    """Writes lines of numbers to `<workdir>/metrics.jsonl` and hands them to the optional sinks.

    A sink that raises is dropped with one warning: it never stops a run.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resumed_step: int = 0,
        tensorboard: bool = False,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
        sinks: Sequence[Sink] = (),
    ):
        """Lines of steps after `resumed_step` are cut from an existing file: they are about to come again. `sinks`: more of them."""
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        _cut_after(self._path, resumed_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._sinks: list[Sink] = list(sinks)
        if tensorboard:
            self._try(
                "TensorBoard",
                lambda: self._sinks.append(TensorBoard(pathlib.Path(workdir) / "tb", resumed_step)),
            )
        if wandb_project:
            self._try(
                "Weights & Biases",
                lambda: self._sinks.append(Wandb(wandb_project, workdir, config or {})),
            )

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add one line: `step` and `values`. What is not finite becomes null, so that every line is JSON.

        Sinks get the values that are not None.
        """
        line = {"step": step} | {name: _jsonable(value) for name, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        known = {name: value for name, value in values.items() if value is not None}
        for sink in list(self._sinks):
            if not self._try(type(sink).__name__, lambda sink=sink: sink.write(step, known)):
                self._sinks.remove(sink)

    def close(self) -> None:
        """Close the file and the sinks."""
        self._file.close()
        for sink in self._sinks:
            self._try(type(sink).__name__, sink.close)
        self._sinks = []

    def _try(self, name: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except Exception as error:  # whatever a logging service raises
            _log.warning(
                "%s is off for the rest of this run: %s: %s", name, type(error).__name__, error
            )
            return False
        return True


class TensorBoard:
    """Event files for TensorBoard in `directory`."""

    def __init__(self, directory: pathlib.Path, resumed_step: int):
        """Tell TensorBoard to forget what an earlier start wrote after `resumed_step`."""
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._writer = RecordWriter((directory / name).open("ab"))
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(
            event_pb2.Event(wall_time=time.time(), step=resumed_step + 1, session_log=restart)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event holding every number of a step."""
        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        summary = summary_pb2.Summary(value=scalars)
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _add(self, event: event_pb2.Event) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()


class Silence:
    """What a process writes that is not the first one of its run: nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Wandb:
    """A Weights & Biases run; the package is an extra (`pip install cramjax[wandb]`)."""

    def __init__(self, project: str, workdir: str | os.PathLike, config: Mapping[str, Any]):
        """Start, or go on with, the run named after the workdir."""
        import wandb

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
    """The lines of a metrics.jsonl; one that a crash cut short is left out. Empty where there is no file."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def _cut_after(path: pathlib.Path, step: int) -> None:
    """Rewrite the file with its lines up to `step`; a crash leaves the old file or the new one."""
    if not path.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read(path) if line["step"] <= step]
    temporary = path.with_name(f".{path.name}.cut")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _jsonable(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

"""stdout and stderr that never end a command: a closed pipe, a lost terminal, a full disk.

A run of a day must not die of a line that nobody can read.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, cast

_STREAMS = ("stdout", "stderr")
_BUSY_S = 1.0
"""Seconds that the first line waits for a full pipe that does not block its writers."""


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Inside, no write to `sys.stdout` or `sys.stderr` raises; what cannot be written is lost.

    A character that the encoding does not have is written as its code. Text that is lost while a
    disk is full does not come later. Streams of a notebook or of pytest stay as they are. Contexts
    nest.
    """
    _occupy_standard_descriptors()
    before = {name: getattr(sys, name) for name in _STREAMS}
    ours = {name: _wrapped(stream) for name, stream in before.items()}
    for name in _STREAMS:
        setattr(sys, name, ours[name])
    try:
        yield
    finally:
        for name in _STREAMS:
            ours[name].flush()
            # Other code may have put a stream of its own there meanwhile.
            if getattr(sys, name) is ours[name]:
                setattr(sys, name, before[name])


def lost_output() -> str | None:
    """Returns the reason for which text on stdout is lost, or None.

    A reader that has closed its end of a pipe wants no more, so that loses nothing.
    """
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    return raw.lost if raw else None


def waive_output() -> None:
    """Forget what stdout has lost, because the command's result is elsewhere."""
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    if raw:
        raw.lost = None


class _Descriptor(io.FileIO):
    """A file descriptor whose errors are noted and not raised; it stays open."""

    def __init__(self, number: int):
        super().__init__(number, "wb", closefd=False)
        self.lost: str | None = None
        self._is_stuck = False

    def write(self, data: Any) -> int:
        """Write what can be written; returns the number of bytes to go on after."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
            if written is None and not self._is_stuck:
                # The pipe is full, and it is one that does not block.
                select.select([], [self], [], _BUSY_S)
                written = super().write(data)
            self._is_stuck = written is None
            if written is not None:
                return written
            self.lost = os.strerror(errno.EAGAIN)
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.lost = error.strerror
        return size


def _wrapped(stream: Any) -> Any:
    """Returns `stream` without errors; the stream itself if it is not Python's own."""
    if stream is None:
        # The process was started without it.
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if type(stream) is not io.TextIOWrapper or _raw(stream) or stream.closed:
        return stream
    try:
        stream.flush()
        descriptor = _Descriptor(stream.fileno())
    except (OSError, ValueError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(cast(io.RawIOBase, descriptor)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream: Any) -> _Descriptor | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Descriptor) else None


def _occupy_standard_descriptors() -> None:
    """Open the null device as 0, 1 and 2 where they are closed.

    Else the next file takes such a number, and what C++ prints goes into a dataset.
    """
    while True:
        number = os.open(os.devnull, os.O_RDWR)
        if number > 2:
            os.close(number)
            return
        os.set_inheritable(number, True)

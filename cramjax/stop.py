"""SIGTERM and SIGINT: a request to stop after the current step, or where there is nothing to save,
the end at once.

Python runs a signal's handler between two lines of the main thread, and a compilation is one line
that takes a minute. So a command watches its signals from a second thread as well, which ends the
process when the main thread does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
GRACE_S = 1.0
"""Seconds the main thread has to leave by itself; a signal is answered within two."""
_FLUSH_S = 0.3


def exit_code(reason: str | None) -> int:
    """Returns the exit code of a run with this `stop_reason`: 128 + the signal it names, 0 where it
    names none.
    """
    return next((code for signum, code in EXIT_CODES.items() if signum.name.lower() == reason), 0)


class Stopped(SystemExit):
    """A signal has ended the command, and there was nothing to save."""


class Stop:
    """A request to stop: the number of the signal, None before one arrives."""

    signum: int | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self.signum is not None

    @property
    def reason(self) -> str | None:
        """The signal's name in lower case, as in the summary's `stop_reason`."""
        return signal.Signals(self.signum).name.lower() if self.signum else None

    @property
    def exit_code(self) -> int:
        """128 + signal number, as shells count; 0 where none arrived."""
        return EXIT_CODES[self.signum] if self.signum else 0


class StopSignal(Stop):
    """A context in which the first SIGTERM or SIGINT is remembered and a second one ends the
    process at once.

    Contexts nest; the innermost one answers. Outside the main thread (a notebook's server) signals
    belong to somebody else and nothing is installed.
    """

    _innermost: StopSignal | None = None

    def __init__(self):
        self._previous: dict[int, object] = {}
        self._outer: StopSignal | None = None
        self._at_once = False

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._outer, StopSignal._innermost = StopSignal._innermost, self
            for signum in EXIT_CODES:
                self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if StopSignal._innermost is self:
            StopSignal._innermost = self._outer

    def _remember(self, signum, _frame):
        if self._at_once:
            # Noted as well: code in between may swallow the exception, as a destructor does.
            self.signum = signum
            raise Stopped(EXIT_CODES[signum])
        if self.signum is not None:
            for number in self._previous:
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signum

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal ends the command by `Stopped`, one that came before as well: there is no
        state to save.
        """
        if self.requested:
            raise Stopped(self.exit_code)
        before, self._at_once = self._at_once, True
        try:
            yield
        finally:
            self._at_once = before

    @classmethod
    def ends_at_once(cls) -> bool:
        """Whether a signal that comes now ends the command, because there is nothing to save."""
        return cls._innermost is not None and cls._innermost._at_once


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Inside, a signal ends this process within two seconds, but where an inner `StopSignal`
    remembers it.

    For a command line, whose process is its own. The exit code is 128 + the number of the signal.
    """
    with StopSignal() as stop, _watched():
        try:
            with stop.at_once():
                yield
        except Stopped as stopped:
            leave(stopped.code, f"stopped by {_name(stopped.code)}")
        if stop.requested:
            leave(stop.exit_code, f"stopped by {_name(stop.exit_code)}")


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Inside, a thread sees each signal that Python handles, also while the main thread is in C++."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="cramjax-signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)


def _watch(reader: int) -> None:
    """End the process for the first signal that comes where there is nothing to save; until
    `reader` is closed.
    """
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number in EXIT_CODES and StopSignal.ends_at_once():
                # From here on the process ends, whatever the main thread goes on to do.
                time.sleep(GRACE_S)
                leave(EXIT_CODES[number], f"stopped by {_name(EXIT_CODES[number])}")
    os.close(reader)


def leave(code: int, line: str = "") -> None:
    """End this process now, with a last `line` on stderr: a thread inside XLA would hold up
    Python's farewell or crash in it.

    Locks end with the process, and files are written so that a killed process leaves none half
    done.
    """
    flushing = threading.Thread(target=_flush, args=(line,), daemon=True)
    flushing.start()
    # A stream that nobody reads, or that the main thread is writing to, is not waited for.
    flushing.join(_FLUSH_S)
    os._exit(code)


def _flush(line: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if line:
        with contextlib.suppress(OSError):
            os.write(2, f"{line}\n".encode())


def _name(code: int) -> str:
    return next(signum.name for signum, of_signal in EXIT_CODES.items() if of_signal == code)

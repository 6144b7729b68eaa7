"""SIGTERM and SIGINT: a request to stop after the current step.

If there is nothing to save, a signal ends the command at once.

Python runs a signal's handler between two lines of the main thread, and a compilation is one line
that takes a minute. So a second thread watches the signals of a command as well. It ends the
process if the main thread does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
GRACE_S = 1.0
"""Seconds that the main thread has to leave by itself; a signal is answered within two seconds."""
_FLUSH_S = 0.3


def exit_code(reason: str | None) -> int:
    """Returns the exit code for a run's stop reason: 128 + signal number, or 0 without a signal."""
    for signum, code in EXIT_CODES.items():
        if signum.name.lower() == reason:
            return code
    return 0


class Stopped(SystemExit):
    """Raised in the main thread by a signal that comes while there is nothing to save."""


class Stop:
    """A request to stop; `signum` is the signal, or None before one arrives."""

    signum: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.signum is not None

    @property
    def reason(self) -> str | None:
        """The signal's name in lower case, as in the summary's `stop_reason`."""
        return self.signum.name.lower() if self.signum else None

    @property
    def exit_code(self) -> int:
        """128 + signal number, as in a shell; 0 without a signal."""
        return EXIT_CODES[self.signum] if self.signum else 0


class StopSignal(Stop):
    """A context that remembers the first SIGTERM or SIGINT; a second one ends the process at once.

    Contexts nest, and the innermost one answers. Outside the main thread (a notebook's server)
    signals belong to other code, and no handler is installed.
    """

    _innermost: StopSignal | None = None

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._outer: StopSignal | None = None
        self._at_once = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._outer = StopSignal._innermost
            StopSignal._innermost = self
            for signum in EXIT_CODES:
                self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if StopSignal._innermost is self:
            StopSignal._innermost = self._outer

    def _remember(self, signum: int, _frame: object) -> None:
        if self._at_once:
            # The number is noted as well: a destructor may swallow the exception.
            self.signum = signal.Signals(signum)
            raise Stopped(self.exit_code)

        # The second signal: the default handlers end the process.
        if self.signum is not None:
            for number in self._previous:
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signal.Signals(signum)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped`, because there is no state to save.

        A signal that came before raises it on entry.
        """
        if self.requested:
            raise Stopped(self.exit_code)
        before = self._at_once
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = before

    @classmethod
    def ends_at_once(cls) -> bool:
        """Returns whether a signal ends the command now, because there is nothing to save."""
        return cls._innermost is not None and cls._innermost._at_once


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Inside, a signal ends this process within two seconds; the exit code is 128 + signal number.

    An inner `StopSignal` may remember the signal instead. This is for a command line, which owns
    its process.
    """
    with StopSignal() as stop, _watched(), _quiet_destructors():
        try:
            with stop.at_once():
                yield
        except Stopped as stopped:
            code = int(stopped.code or 0)
            leave(code, f"stopped by {_name(code)}")
        if stop.requested:
            leave(stop.exit_code, f"stopped by {_name(stop.exit_code)}")


@contextlib.contextmanager
def _quiet_destructors() -> Iterator[None]:
    """Inside, Python prints no traceback of a `Stopped` that a destructor swallows.

    The import system has such destructors, too. The process ends all the same.
    """
    previous = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            previous(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = previous


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Inside, a thread sees each signal, also while the main thread is in C++."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    # Python writes the number of each signal into the pipe at once.
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
    """End the process for the first signal that comes while there is nothing to save.

    Returns when the other end of `reader` is closed.
    """
    while numbers := os.read(reader, 64):
        for number in numbers:
            if number in EXIT_CODES and StopSignal.ends_at_once():
                # The process ends now, whatever the main thread does.
                time.sleep(GRACE_S)
                code = 128 + number
                leave(code, f"stopped by {_name(code)}")
    os.close(reader)


def leave(code: int, line: str = "") -> None:
    """End this process now, with a last `line` on stderr.

    Python's own exit would wait for a thread inside XLA, or crash in it. Locks end with the
    process, and a killed process leaves no half-written file.
    """
    flushing = threading.Thread(target=_flush, args=(line,), daemon=True)
    flushing.start()
    # Do not wait for a stream that nobody reads or that the main thread is writing to.
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
    return next(signum.name for signum, value in EXIT_CODES.items() if value == code)

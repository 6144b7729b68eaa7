"""Signals that ask this process to stop: it saves what there is to save and exits with 128 + n.

SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU ask for the same. A further signal
repeats the request: schedulers send several, a closed terminal's SIGHUP comes with a SIGTERM, and
the kernel sends SIGXCPU every second. Only a second Ctrl-C leaves at once, without saving.

A signal that was ignored when the process started, as SIGHUP is under nohup, stays ignored. One
that a library ignores later does not.

Python runs a signal's handler between two lines of the main thread, and a compilation is one line
that takes a minute. So a second thread watches the signals of a command as well. It ends the
process if the main thread does not.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
# Not every system has all of them.
EXIT_CODES: Mapping[signal.Signals, int] = {
    signum: 128 + signum for signum in signal.Signals if signum.name in _NAMES
}
GRACE_S = 1.0
"""Seconds that the main thread has to leave by itself; a signal is answered within two seconds."""
SAME_S = 0.5
"""Seconds in which a second Ctrl-C is the first: a terminal and a wrapper may both send one."""
PARENT = "CRAMJAX_PARENT"
"""The environment variable with the id of the process whose end asks a command to stop."""
_POLL_S = 0.5
_FLUSH_S = 0.3
# SIG_IGN as a pointer of C; SIG_DFL is None.
_IGNORED = 1


def exit_code(reason: str | None) -> int:
    """Returns the exit code for a run's stop reason: 128 + signal number, or 0 without a signal."""
    for signum, code in EXIT_CODES.items():
        if signum.name.lower() == reason:
            return code
    return 0


def _answerable() -> Iterator[signal.Signals]:
    """Yields the signals that this module may answer.

    Those that are ignored stay so. Beside SIGTERM and SIGINT, those that have a handler are left to
    it: it belongs to the program that calls `cramjax.train`.
    """
    for signum in EXIT_CODES:
        handler = signal.getsignal(signum)
        # None stands for a handler that is not Python's.
        if handler is signal.SIG_IGN or handler is None:
            continue
        is_ours = getattr(handler, "__module__", None) == __name__
        if signum in (signal.SIGTERM, signal.SIGINT) or handler is signal.SIG_DFL or is_ours:
            yield signum


def end_imports() -> None:
    """From here until `answered`, a signal ends this process without a traceback."""
    for signum in _answerable():
        signal.signal(signum, _exit)


def _exit(signum: int, _frame: object) -> None:
    os._exit(128 + signum)


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


class _Presses:
    """Tells a second Ctrl-C from the first."""

    def __init__(self) -> None:
        self._first_s: float | None = None

    def is_second(self, signum: int) -> bool:
        """Takes in a signal; returns True for a second Ctrl-C."""
        if signum != signal.SIGINT:
            return False
        now = time.monotonic()
        if self._first_s is None:
            self._first_s = now
        return now - self._first_s >= SAME_S


class StopSignal(Stop):
    """A context that remembers the first signal; `EXIT_CODES` has those that it answers.

    Later ones change nothing, except that a second Ctrl-C ends a command at once. Elsewhere, as in
    a notebook, it raises KeyboardInterrupt.

    Contexts nest, and the innermost one answers. Outside the main thread (a notebook's server)
    signals belong to other code, and no handler is installed.
    """

    _innermost: StopSignal | None = None
    # A second thread ends the process, whatever the main thread does.
    _is_watched = False

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}
        self._outer: StopSignal | None = None
        self._at_once = False
        self._presses = _Presses()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._outer = StopSignal._innermost
            StopSignal._innermost = self
            for signum in _answerable():
                self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if StopSignal._innermost is self:
            StopSignal._innermost = self._outer

    def _remember(self, signum: int, _frame: object) -> None:
        # Noted before anything is raised: a destructor may swallow the exception.
        is_first = self.signum is None
        if is_first:
            self.signum = signal.Signals(signum)

        if self._at_once:
            # A further signal must not disturb the way out.
            if is_first or not StopSignal._is_watched:
                self._leave()
        elif not StopSignal._is_watched and self._presses.is_second(signum):
            raise KeyboardInterrupt

    def _leave(self) -> None:
        """Raise `Stopped`, through all contexts around this one."""
        outer = self._outer
        while outer is not None:
            outer.signum = outer.signum or self.signum
            outer = outer._outer
        raise Stopped(self.exit_code)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped`, because there is no state to save.

        A signal that came before raises it on entry.
        """
        if self.requested:
            self._leave()
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
    its process. The end of the process that `PARENT` names, if any, counts as a SIGTERM.
    """
    # The interpreter takes its handlers away before C++ has cleaned up. A signal in that moment
    # would make a failure of a command that is done.
    atexit.register(_ignore)
    with StopSignal() as stop, _watched(), _quiet_destructors():
        # Taken out of the environment: the processes that this one starts have another parent.
        if parent := os.environ.pop(PARENT, None):
            watch_parent(int(parent), _ask_orphan)
        try:
            with stop.at_once():
                yield
        finally:
            # Also if something has swallowed the exception, or made another one of it.
            if stop.requested:
                leave(stop.exit_code, f"stopped by {_name(stop.exit_code)}")


def _ignore() -> None:
    for signum in EXIT_CODES:
        signal.signal(signum, signal.SIG_IGN)


def watch_parent(parent: int, then: Callable[[], object]) -> None:
    """Call `then` in a thread after the end of the process `parent`, which started this one."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)
        then()

    threading.Thread(target=wait, name="cramjax-parent", daemon=True).start()


def _ask_orphan() -> None:
    _flush("the command that started this one has ended")
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Inside, this thread starts processes that signals do not reach, except SIGTERM.

    A terminal sends its signals to all processes of a command. The first answers for all.
    """
    mask = EXIT_CODES.keys() - {signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, mask)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    StopSignal._is_watched = True
    try:
        yield
    finally:
        StopSignal._is_watched = False
        signal.set_wakeup_fd(previous)
        os.close(writer)


def _watch(reader: int) -> None:
    """End the process for a signal that comes while there is nothing to save, or a second Ctrl-C.

    Returns when the other end of `reader` is closed.
    """
    presses = _Presses()
    handlers = _Handlers()
    while True:
        is_readable = select.select([reader], [], [], _POLL_S)[0]
        handlers.take_back()
        if not is_readable:
            continue
        numbers = os.read(reader, 64)
        if not numbers:
            break
        for number in numbers:
            _answer(number, presses)
    os.close(reader)


def _answer(number: int, presses: _Presses) -> None:
    """End the process if the signal `number` asks for that."""
    if number not in EXIT_CODES:
        return
    code = 128 + number
    if StopSignal.ends_at_once():
        # The process ends now, whatever the main thread does.
        time.sleep(GRACE_S)
        leave(code, f"stopped by {_name(code)}")
    if presses.is_second(number):
        leave(code, f"left at once by a second {_name(code)}")


class _Handlers:
    """Python's handler of signals in C, which libraries may replace without Python's knowledge.

    libtpu sets SIGHUP to ignored when JAX starts.
    """

    def __init__(self) -> None:
        self._get = ctypes.pythonapi.PyOS_getsig
        self._get.argtypes = [ctypes.c_int]
        self._get.restype = ctypes.c_void_p
        self._set = ctypes.pythonapi.PyOS_setsig
        self._set.argtypes = [ctypes.c_int, ctypes.c_void_p]
        self._set.restype = ctypes.c_void_p
        self._python: int | None = None

    def take_back(self) -> None:
        """Install Python's handler again where a library has made a signal ignored or default."""
        for signum in EXIT_CODES:
            if not callable(signal.getsignal(signum)):
                continue
            in_c = self._get(signum)
            if in_c not in (None, _IGNORED):
                self._python = self._python or in_c
            elif self._python is not None:
                self._set(signum, self._python)


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
    return signal.Signals(code - 128).name

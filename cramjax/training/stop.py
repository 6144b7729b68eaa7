"""SIGTERM and SIGINT as a request to stop after the current step, with a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def exit_code(reason: str | None) -> int:
    """Of a run that ended for a `stop_reason`: 128 + the number of the signal that it names; 0 for any other."""
    return next((code for signum, code in EXIT_CODES.items() if signum.name.lower() == reason), 0)


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
    """A context in which the first SIGTERM or SIGINT is remembered and a second one ends the process at once.

    Outside the main thread (a notebook's server) signals belong to somebody else and nothing is installed.
    """

    def __init__(self):
        self._previous: dict[int, object] = {}
        self._at_once = False

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for signum in EXIT_CODES:
                self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_):
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _remember(self, signum, _frame):
        if self._at_once:
            raise SystemExit(EXIT_CODES[signum])
        if self.signum is not None:
            for number in self._previous:
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signum

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal ends the process at its next line, by SystemExit: there is no new state to save."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

"""What a person sees of a preparation: a live bar with rate and time left on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

PLAIN_INTERVAL_S = 5.0


class Announcer(Protocol):
    """Anything that can print a line that stays."""

    def announce(self, text: str) -> None:
        """Print `text` as a line of its own."""


class Lines:
    """An announcer that prints to stderr."""

    def announce(self, text: str) -> None:
        """Print `text` as a line of its own."""
        print(text, file=sys.stderr, flush=True)


class Meter:
    """Progress of one stage after another; silent without an announcer. Call `close` at the end."""

    def __init__(self, announcer: Announcer | None, now: Callable[[], float] = time.monotonic):
        self._announcer, self._now = announcer, now
        self._bar = None
        self._started = self._printed = now()
        self._stage, self._base = "", 0.0
        if announcer is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()

    def announce(self, text: str) -> None:
        """Print a line that stays."""
        if self._announcer is not None:
            self._announcer.announce(text)

    def update(self, stage: str, n_bytes: float, fraction: float | None) -> None:
        """`n_bytes` of text are through `stage`, which is `fraction` in [0, 1] of it all (None: unknown)."""
        now = self._now()
        if stage != self._stage:
            # Rates count from here, not from what an earlier, interrupted preparation had done.
            self._stage, self._started = stage, now
            self._base, self._base_fraction = n_bytes, fraction or 0.0
        elapsed_s = max(now - self._started, 1e-3)
        text = f"{stage}: {n_bytes / 1e6:,.1f} MB"
        if n_bytes > self._base:
            text += f", {(n_bytes - self._base) / 1e6 / elapsed_s:.1f} MB/s"
        gained = (fraction or 0.0) - self._base_fraction
        if gained > 0 and fraction < 1:
            minutes, seconds = divmod(round(elapsed_s * (1 - fraction) / gained), 60)
            text += f", {minutes}:{seconds:02} left"
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=fraction or 0.0)
        elif self._announcer is not None and now - self._printed >= PLAIN_INTERVAL_S:
            self._printed = now
            self._announcer.announce(text)

    def close(self) -> None:
        """Take the bar off the terminal; harmless to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

"""The progress of a preparation: the bytes of text through one stage after another."""

from __future__ import annotations

import time
from collections.abc import Callable

from cramjax import console
from cramjax.console import Announce


class StageMeter(console.Meter):
    """Shows rate and time left of the current stage; silent without `announce`."""

    def __init__(self, announce: Announce | None, now: Callable[[], float] = time.monotonic):
        super().__init__(announce, now=now)
        self._clock = now
        self._stage = ""
        self._bytes = console.Pace(now=now)
        self._share = console.Pace(now=now)

    def show(self, stage: str, n_bytes: float, fraction: float | None) -> None:
        """Show that `n_bytes` of text are through `stage`.

        Args:
            stage: "cleaning" and the like.
            n_bytes: bytes of text.
            fraction: the share of the whole stage in [0, 1]; None if unknown.
        """
        # Rates count from here, not from what an earlier, interrupted preparation had done.
        if stage != self._stage:
            self._stage = stage
            self._bytes = console.Pace(n_bytes, self._clock)
            self._share = console.Pace(fraction or 0.0, self._clock)

        text = f"{stage}: {n_bytes / 1e6:,.1f} MB"
        rate = self._bytes.rate(n_bytes)
        if rate > 0:
            text += f", {rate / 1e6:.1f} MB/s"
        if fraction is not None and fraction < 1:
            left_s = self._share.left_s(fraction, 1.0)
            if left_s is not None:
                text += f", {console.time_left(left_s)}"
        self.update(text, fraction)

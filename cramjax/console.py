"""What a person watching a run sees on stderr: a live line on a terminal, plain lines elsewhere.

Numbers only come in through the methods; nothing here reads devices or files.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

PLAIN_INTERVAL_S = 10.0
"""Seconds between plain lines at least, so that the log of a day stays readable."""


class Progress:
    """Shows how far a run is. `update` as often as there is something new; `close` when the run ends."""

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        is_terminal: bool | None = None,
        time_source: Callable[[], float] = time.monotonic,
    ):
        """Writes to `stream` (default stderr); live where it is a terminal."""
        self._stream = stream if stream is not None else sys.stderr
        is_terminal = self._stream.isatty() if is_terminal is None else is_terminal
        self._now = time_source
        self._printed_at: float | None = None
        self._values: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self._console, self._live = None, None
        if is_terminal:
            from rich.console import Console

            self._console = Console(file=self._stream, force_terminal=True, highlight=False)

    def announce(self, text: str) -> None:
        """Print a line that stays ("compiling the train step…")."""
        if self._console is None:
            print(text, file=self._stream, flush=True)
        else:
            self._console.print(text, markup=False, style="dim")

    def update(self, **values: float | None) -> None:
        """New values: `fraction` of the budget and `mfu` in [0, 1], `step`, `loss`, `tokens_per_s`, `eta_s`.

        What is not given keeps its last value; None hides it.
        """
        self._values |= values
        if self._console is not None:
            self._show()
        elif self._printed_at is None or self._now() - self._printed_at >= PLAIN_INTERVAL_S:
            self._print_plain()

    def evaluated(
        self, step: int, eval_loss: float, eval_accuracy: float, unigram_loss: float
    ) -> None:
        """Print the outcome of an evaluation and keep it beside the training loss. Losses in nats."""
        self._values |= {"eval_loss": eval_loss, "unigram_loss": unigram_loss}
        self.announce(
            f"step {step:,}: held-out loss {eval_loss:.3f} ({_against(eval_loss, unigram_loss)}), "
            f"accuracy {eval_accuracy:.1%}"
        )

    def close(self) -> None:
        """Leave the last state of the line on the screen; harmless to call twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif (
            self._console is None
            and self._values != self._shown
            and self._values.get("step") is not None
        ):
            self._print_plain()

    def _print_plain(self) -> None:
        self._printed_at = self._now()
        self._shown = dict(self._values)
        print(
            f"{self._values.get('fraction') or 0.0:6.1%}  {describe(self._values)}",
            file=self._stream,
            flush=True,
        )

    def _show(self) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(self._line(), console=self._console, refresh_per_second=4)
            self._live.start()
        self._live.update(self._line())

    def _line(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        fraction = self._values.get("fraction") or 0.0
        line = Table.grid(padding=(0, 1))
        line.add_row(
            ProgressBar(total=1.0, completed=fraction, width=12),
            Text(f"{fraction:4.0%}", style="bold"),
            Text(describe(self._values), no_wrap=True, overflow="ellipsis"),
        )
        return line


def describe(values: dict[str, Any]) -> str:
    """Values of `Progress.update` in one line, what must fit 80 columns first; what is missing or None is left out."""
    parts = []
    if (step := values.get("step")) is not None:
        parts.append(f"step {step:,}")
    if (loss := values.get("loss")) is not None:
        parts.append(f"loss {loss:.3f}")
    if (rate := values.get("tokens_per_s")) is not None:
        parts.append(f"{_amount(rate)} tokens/s")
    if (eta_s := values.get("eta_s")) is not None:
        parts.append(f"{_duration(eta_s)} left")
    if (mfu := values.get("mfu")) is not None:
        parts.append(f"MFU {mfu:.0%}")
    if (eval_loss := values.get("eval_loss")) is not None:
        parts.append(f"held-out {eval_loss:.3f} (unigram {values['unigram_loss']:.3f})")
    return "  ".join(parts)


def _against(loss: float, unigram_loss: float) -> str:
    side = "below" if loss <= unigram_loss else "above"
    return f"{abs(unigram_loss - loss):.3f} {side} the unigram baseline {unigram_loss:.3f}"


def _amount(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

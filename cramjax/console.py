"""The output on stderr: lines that stay, a live panel on a terminal, rates and times left.

Numbers come in through the methods alone; nothing here reads devices or files. JAX is not imported,
and rich only on a terminal.
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import Progress as RichProgress

Announce = Callable[[str], None]
"""Prints a line that stays."""

LEAST_ROWS = 10
"""A lower terminal gets one line instead of the panel."""

_BLOCKS = "▁▂▃▄▅▆▇█"

PLAIN_INTERVAL_S = 10.0
"""The shortest time between plain lines of a run, so that the log of a day stays readable."""


def announce(text: str) -> None:
    """Print `text` to stderr as a line of its own."""
    # One write: threads print as well, and their lines must not mix.
    print(f"{text}\n", end="", file=sys.stderr, flush=True)


def silent(text: str) -> None:
    """Print nothing: an `Announce` for callers that want no messages."""


def duration(seconds: float) -> str:
    """Returns `seconds` as "M:SS", or "H:MM:SS" from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def time_left(seconds: float) -> str:
    """Returns "1:02 left" for 62 seconds."""
    return f"{duration(seconds)} left"


class Pace:
    """Measures the rate of some work, and the time left at that rate.

    Args:
        done: the amount finished before the clock starts; it does not count for the rate.
        now: returns seconds.
    """

    def __init__(self, done: float = 0.0, now: Callable[[], float] = time.monotonic):
        self._before = done
        self._now = now
        self._started = now()

    def rate(self, done: float) -> float:
        """Returns the amount a second when `done` is finished."""
        seconds = max(self._now() - self._started, 1e-3)
        return (done - self._before) / seconds

    def left_s(self, done: float, total: float) -> float | None:
        """Returns the seconds from `done` to `total`, or None before anything is finished."""
        rate = self.rate(done)
        return (total - done) / rate if rate > 0 else None


class Meter:
    """Shows how far a piece of work is: a live bar on a terminal, a line now and then elsewhere.

    Args:
        announce: prints a line that stays; with None nothing is shown.
        interval_s: seconds between lines where there is no bar.
        has_bar: whether to draw the bar; default: stderr is a terminal.
        now: returns seconds.
    """

    def __init__(
        self,
        announce: Announce | None,
        *,
        interval_s: float = 5.0,
        has_bar: bool | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self._announce = announce
        self._interval_s = interval_s
        self._now = now
        self._printed_at = now()
        self._bar: RichProgress | None = None

        if has_bar is None:
            has_bar = sys.stderr.isatty()
        if has_bar and announce is not None:
            self._bar = _open_bar()

    def announce(self, text: str) -> None:
        """Print a line that stays."""
        if self._announce is not None:
            self._announce(text)

    def update(self, text: str, fraction: float | None = None) -> None:
        """Show `text`; `fraction` in [0, 1] fills the bar, None leaves it empty."""
        if self._bar is not None:
            task_id = self._bar.task_ids[0]
            self._bar.update(task_id, description=text, completed=fraction or 0.0)
        elif self._announce is not None and self._now() - self._printed_at >= self._interval_s:
            self._printed_at = self._now()
            self._announce(text)

    def close(self) -> None:
        """Take the bar off the terminal; a second call does nothing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_bar() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(24),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task("", total=1.0)
    bar.start()
    return bar


class Progress:
    """Shows how far a run is: a live panel on a terminal, plain lines elsewhere.

    Call `update` whenever there is something new, and `close` when the run ends.

    Args:
        stream: written to; default: stderr.
        is_terminal: whether to draw the panel; default: `stream` is a terminal that can move its
            cursor.
        time_source: returns seconds.
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        is_terminal: bool | None = None,
        time_source: Callable[[], float] = time.monotonic,
    ):
        self._stream = sys.stderr if stream is None else stream
        self._now = time_source
        self._printed_at: float | None = None
        self._values: dict[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self._losses: list[float] = []
        self._console: Console | None = None
        self._live: Live | None = None

        if is_terminal is None:
            can_move = os.environ.get("TERM", "") not in ("dumb", "unknown")
            is_terminal = self._stream.isatty() and can_move
        if is_terminal:
            from rich.console import Console

            self._console = Console(file=self._stream, force_terminal=True, highlight=False)

    @classmethod
    def silent(cls) -> Self:
        """Returns a progress that shows nothing."""
        return cls(stream=io.StringIO(), is_terminal=False)

    def announce(self, text: str) -> None:
        """Print a line that stays ("compiling the train step…")."""
        if self._console is None:
            print(f"{text}\n", end="", file=self._stream, flush=True)
        else:
            self._console.print(text, markup=False, style="dim")

    def update(self, **values: float | None) -> None:
        """Take in new values and show them.

        The known names are `fraction` of the budget and `mfu` in [0, 1], `step`, `loss`,
        `tokens_per_s`, `batch_size`, `lr`, `eta_s` and `next_eval_s`, the seconds to the end and to
        the next evaluation, `memory_bytes` and `memory_limit`. A name that is missing keeps its
        last value; None hides it.
        """
        self._values |= values
        if (loss := values.get("loss")) is not None:
            self._losses.append(loss)
        if self._console is not None:
            self._show(self._console)
        elif self._printed_at is None or self._now() - self._printed_at >= PLAIN_INTERVAL_S:
            self._print_plain()

    def evaluated(
        self, step: int, eval_loss: float, eval_accuracy: float, unigram_loss: float
    ) -> None:
        """Print an evaluation and keep it beside the training loss. Losses are in nats."""
        self._values |= {"eval_loss": eval_loss, "unigram_loss": unigram_loss}
        self.announce(
            f"step {step:,}: held-out loss {eval_loss:.3f} ({_against(eval_loss, unigram_loss)}), "
            f"accuracy {eval_accuracy:.1%}"
        )

    def close(self) -> None:
        """Leave the last state of the panel on the screen; a second call does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            return

        has_news = self._values != self._shown and self._values.get("step") is not None
        if self._console is None and has_news:
            self._print_plain()

    def _print_plain(self) -> None:
        self._printed_at = self._now()
        self._shown = dict(self._values)
        fraction = self._values.get("fraction") or 0.0
        print(f"{fraction:6.1%}  {describe(self._values)}", file=self._stream, flush=True)

    def _show(self, console: Console) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(self._panel(console), console=console, refresh_per_second=4)
            self._live.start()
        self._live.update(self._panel(console))

    def _panel(self, console: Console) -> Group:
        """Returns the bar and, where they fit, lines with everything known."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        is_low = console.height < LEAST_ROWS
        fraction = self._values.get("fraction") or 0.0
        beside = describe(self._values) if is_low else _end(self._values)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=fraction, width=min(24, console.width // 3)),
            Text(f"{fraction:4.0%}", style="bold"),
            Text(beside, no_wrap=True, overflow="ellipsis"),
        )
        if is_low:
            return Group(bar)

        curve = ""
        if "utf" in (console.encoding or "").lower():
            curve = sparkline(self._losses)
        lines = panel_lines(self._values, curve)
        return Group(bar, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def describe(values: dict[str, Any]) -> str:
    """Returns the values of `Progress.update` in one line; missing ones and None are left out.

    The numbers that have to fit a terminal of 80 columns come first.
    """
    parts = []
    if (step := values.get("step")) is not None:
        parts.append(f"step {step:,}")
    if (loss := values.get("loss")) is not None:
        parts.append(f"loss {loss:.3f}")
    if (rate := values.get("tokens_per_s")) is not None:
        parts.append(f"{_amount(rate)} tokens/s")
    if (eta_s := values.get("eta_s")) is not None:
        parts.append(time_left(eta_s))
    if (mfu := values.get("mfu")) is not None:
        parts.append(f"MFU {mfu:.0%}")
    if (eval_loss := values.get("eval_loss")) is not None:
        parts.append(f"held-out {eval_loss:.3f} (unigram {values['unigram_loss']:.3f})")
    return "  ".join(parts)


def panel_lines(values: dict[str, Any], curve: str) -> list[str]:
    """Returns the values of `Progress.update` in lines; missing ones and None are left out.

    `curve` stands beside the loss. What has to fit a narrow terminal comes first in a line.
    """
    loss = _parts(
        values,
        loss=lambda value: f"loss {value:.3f}" + f" {curve}" * bool(curve),
        eval_loss=lambda value: f"held-out {value:.3f}",
        unigram_loss=lambda value: f"unigram {value:.3f}",
    )

    rate = _parts(
        values,
        tokens_per_s=lambda value: f"{_amount(value)} tokens/s",
        mfu=lambda value: f"MFU {value:.0%}",
        memory_bytes=lambda value: _memory(value, values.get("memory_limit")),
    )
    step = _parts(
        values,
        step=lambda value: f"step {value:,}",
        next_eval_s=lambda value: f"next evaluation in {duration(value)}",
        batch_size=lambda value: f"batch {value:,}",
        lr=lambda value: f"lr {value:.2g}",
        skipped=lambda value: f"{value:,} skipped" * bool(value),
    )
    return [line for line in (loss, rate, step) if line]


def _parts(values: dict[str, Any], **forms: Callable[[Any], str]) -> str:
    """Returns the texts of the values that are known, in the order of `forms`."""
    parts = []
    for name, form in forms.items():
        if values.get(name) is not None:
            parts.append(form(values[name]))
    return "  ".join(filter(None, parts))


def _end(values: dict[str, Any]) -> str:
    eta_s = values.get("eta_s")
    return "" if eta_s is None else time_left(eta_s)


def _memory(n_bytes: float, limit: float | None) -> str:
    used = f"memory {n_bytes / 2**30:.1f}"
    return f"{used} GiB" if limit is None else f"{used} of {limit / 2**30:.1f} GiB"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Returns the curve of `values` in at most `width` characters; a number that is none is blank.

    Each character stands for the mean of as many neighbours.
    """
    step = -(-len(values) // width)
    means = []
    for start in range(0, len(values), step or 1):
        part = values[start : start + step]
        means.append(sum(part) / len(part))

    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return ""
    low = min(known)
    height = (max(known) - low) or 1.0
    curve = ""
    for mean in means:
        if not math.isfinite(mean):
            curve += " "
            continue
        curve += _BLOCKS[round((mean - low) / height * (len(_BLOCKS) - 1))]
    return curve


def _against(loss: float, unigram_loss: float) -> str:
    side = "below" if loss <= unigram_loss else "above"
    return f"{abs(unigram_loss - loss):.3f} {side} the unigram baseline {unigram_loss:.3f}"


def _amount(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"

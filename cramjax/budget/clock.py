"""One clock for every kind of budget: hours, steps, tokens and FLOPs.

The first limit reached ends the run.

Hours count from the first step of the first start and go on over restarts. Compilation, evaluation
and checkpoints count. Preparing data does not, because `start` comes after it, as in Cramming
(arXiv 2212.14034, section 2) and 24hBERT (arXiv 2104.07705). Learning rate and batch ramp follow
the share that is spent: `schedules.py`.
"""

from __future__ import annotations

import collections
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from cramjax.errors import UserError

N_RECENT = 16
"""Recent steps that predict the next one: their median is not moved by a checkpoint."""


class Clock:
    """Counts what a run has spent and says when it is over.

    The order of calls in a loop, all on one thread:

        clock.start()
        while not clock.done():
            fraction = clock.plan_step(n_tokens, n_flops)   # → learning rate of this step
            ...one optimizer step...
            clock.advance(n_tokens, n_flops, n_rows)

    The loop must read the results of the step before. With more steps in flight than one, the
    intervals between calls of `advance` are those of dispatching, and the run overshoots a time
    budget by the steps in flight.

    The last step always runs at a fraction of exactly 1.0, so the learning rate is at its end
    value. Under a limit in hours the last step is the one that ends nearest to the limit, by the
    durations of recent steps. Without hours nothing depends on time: every fraction is a function
    of the counts.
    """

    def __init__(
        self,
        *,
        hours: float | None = None,
        steps: int | None = None,
        tokens: float | None = None,
        flops: float | None = None,
        time_source: Callable[[], float] = time.monotonic,
    ):
        """Set the limits; at least one is needed.

        Args:
            hours: wall-clock hours. steps: optimizer steps.
            tokens: tokens read. flops: model FLOPs.
            time_source: returns seconds.

        Raises:
            UserError: if no limit is given, or one is not above 0.
        """
        limits = {"hours": hours, "steps": steps, "tokens": tokens, "flops": flops}
        self.limits = {name: limit for name, limit in limits.items() if limit is not None}
        if not self.limits:
            raise UserError(
                "budget: no limit is set; give one of budget.hours, .steps, .tokens and .flops"
            )
        for name, limit in self.limits.items():
            if not limit > 0:
                raise UserError(f"budget.{name}={limit}: must be more than 0")

        self.n_steps = 0
        self.n_tokens = 0
        self.n_flops: float = 0
        self.n_rows = 0

        self._now = time_source
        # The latest reading of the time source; None while the clock does not run.
        self._read_at: float | None = None
        self._elapsed_s = 0.0
        # `elapsed_s` at the latest `advance` since `start`.
        self._advanced_at_s: float | None = None
        # Seconds, tokens and FLOPs of recent steps.
        self._recent: collections.deque[tuple[float, int, float]] = collections.deque(
            maxlen=N_RECENT
        )

        # Shares of the limits at the end of the step that runs.
        self._planned: dict[str, float] | None = None
        # Fractions never fall below that of a step that has run.
        self._floor = 0.0
        self._ended_by: str | None = None

    def start(self) -> None:
        """Start counting seconds; call it when the first step of this process begins."""
        self._read_at = self._now()
        self._advanced_at_s = None

    @property
    def elapsed_s(self) -> float:
        """Returns the seconds counted over all starts; they never decrease."""
        self._tick()
        return self._elapsed_s

    def _tick(self) -> None:
        """Count the seconds since the latest reading of the time source, if the clock runs."""
        if self._read_at is None:
            return
        now = self._now()
        if math.isfinite(now):
            self._elapsed_s += max(0.0, now - self._read_at)
            self._read_at = now

    def advance(self, n_tokens: int, n_flops: float, n_rows: int = 0) -> None:
        """Count one finished optimizer step.

        Args:
            n_tokens: tokens of the step.
            n_flops: model FLOPs of the step.
            n_rows: training rows of the step.
        """
        elapsed_s = self.elapsed_s
        # The first interval after a start holds the compilation: it predicts no later step.
        if self._advanced_at_s is not None:
            self._recent.append((elapsed_s - self._advanced_at_s, n_tokens, n_flops))
        self._advanced_at_s = elapsed_s if self._read_at is not None else None

        self.n_steps += 1
        self.n_tokens += n_tokens
        self.n_flops += n_flops
        self.n_rows += n_rows

        # Time ends a run by plan; counts end it also where a step was larger than planned.
        shares = self._shares(elapsed_s, self.n_steps, self.n_tokens, self.n_flops)
        planned = self._planned if self._planned is not None else shares
        counted = {name: share for name, share in shares.items() if name != "hours"}
        for ending in (planned, counted):
            if self._ended_by is None and ending and max(ending.values()) >= 1.0:
                self._ended_by = max(ending, key=ending.__getitem__)

        self._floor = min(1.0, max(self._floor, *planned.values()))
        self._planned = None

    def fraction(self) -> float:
        """Returns the share of the budget spent by now, the largest over the limits, in [0, 1].

        It never decreases, and is 1.0 when the run is done.
        """
        if self.done():
            return 1.0
        shares = self._shares(self.elapsed_s, self.n_steps, self.n_tokens, self.n_flops)
        return min(1.0, max(shares.values()))

    def plan_step(self, n_tokens: int, n_flops: float) -> float:
        """Plan the step about to start; returns the share of the budget spent at its end.

        The share is exact for steps, tokens and FLOPs, and an estimate for hours. It is never below
        that of a step that has run. A planned share of 1.0 makes this step the last one: `done()`
        is true after the next `advance`.

        Args:
            n_tokens: tokens of the step.
            n_flops: model FLOPs of the step.
        """
        elapsed_s = self.elapsed_s
        step_s = self._per_unit_s("tokens") * n_tokens
        end = (self.n_steps + 1, self.n_tokens + n_tokens, self.n_flops + n_flops)
        shares = self._shares(elapsed_s + step_s, *end)
        if "hours" in shares:
            # Less than half a step would be left: this one ends nearest to the limit.
            limit_s = self.limits["hours"] * 3600
            if limit_s - (elapsed_s + step_s) < step_s / 2:
                shares["hours"] = max(shares["hours"], 1.0)
        self._planned = shares
        return min(1.0, max(self._floor, *shares.values()))

    def done(self) -> bool:
        """Returns True when the step that ran at fraction 1.0 has been counted."""
        return self._ended_by is not None

    def which(self) -> str | None:
        """Returns the limit that ended the run, such as "hours", or None while it goes on."""
        return self._ended_by

    def remaining_s(self) -> float | None:
        """Returns the seconds to the first limit at the recent speed, or None before a step."""
        if self.done():
            return 0.0

        counts = {"steps": self.n_steps, "tokens": self.n_tokens, "flops": self.n_flops}
        left = []
        for name, limit in self.limits.items():
            if name == "hours":
                left.append(limit * 3600 - self.elapsed_s)
            elif self._recent:
                left.append((limit - counts[name]) * self._per_unit_s(name))
        return max(0.0, min(left)) if left else None

    def state_dict(self) -> dict[str, Any]:
        """Returns the clock for a checkpoint, as JSON values."""
        return {
            "elapsed_s": self.elapsed_s,
            "steps": self.n_steps,
            "tokens": self.n_tokens,
            "flops": self.n_flops,
            "rows": self.n_rows,
            "fraction": self._floor,
            "limits": dict(self.limits),
            "ended_by": self._ended_by,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`.

        If the limits have changed since, the counts decide whether the run is over.
        """
        self._elapsed_s = float(state["elapsed_s"])
        self.n_steps = int(state["steps"])
        self.n_tokens = int(state["tokens"])
        self.n_flops = state["flops"]
        self.n_rows = int(state["rows"])
        self._recent.clear()
        self._planned = None
        self._advanced_at_s = None

        if state["limits"] == self.limits:
            self._floor = state["fraction"]
            self._ended_by = state["ended_by"]
            return
        shares = self._shares(self._elapsed_s, self.n_steps, self.n_tokens, self.n_flops)
        largest = max(shares, key=shares.__getitem__)
        self._floor = 0.0
        self._ended_by = largest if shares[largest] >= 1.0 else None

    def _shares(
        self, elapsed_s: float, n_steps: int, n_tokens: int, n_flops: float
    ) -> dict[str, float]:
        """Returns the share spent of every limit that is set; it may exceed 1."""
        spent = {"hours": elapsed_s / 3600, "steps": n_steps, "tokens": n_tokens, "flops": n_flops}
        return {name: spent[name] / limit for name, limit in self.limits.items()}

    def _per_unit_s(self, unit: str) -> float:
        """Returns the median seconds of a step, token or FLOP in recent steps; 0.0 before any.

        The duration of a token predicts the next step better than that of a step, because a batch
        ramp lengthens steps.
        """
        sizes = {
            "steps": lambda entry: 1,
            "tokens": lambda entry: entry[1],
            "flops": lambda entry: entry[2],
        }
        rates = [entry[0] / size for entry in self._recent if (size := sizes[unit](entry)) > 0]
        return statistics.median(rates) if rates else 0.0

"""What a run writes down while it trains: metrics lines, the progress display, and the accounting of its seconds."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time

from cramjax.budget.clock import Clock
from cramjax.console import Progress
from cramjax.training.evaluate import EvalResult
from cramjax.training.loop import StepRecord
from cramjax.training.metrics import MetricsWriter

# Steps over which the summary's training loss is averaged.
LOSS_WINDOW = 50
# Steps over which the gradient noise scale is averaged, about: single ones say little.
NOISE_WINDOW = 100


@dataclasses.dataclass
class Spent:
    """Seconds of the budget that were not training steps, by cause; kept in the checkpoint."""

    compile_s: float = 0.0
    eval_s: float = 0.0
    save_s: float = 0.0
    data_wait_s: float = 0.0
    growth_s: float = 0.0

    @contextlib.contextmanager
    def on(self, cause: str):
        """Count the seconds inside under `cause` ("compile_s", …)."""
        start = time.monotonic()
        try:
            yield
        finally:
            setattr(self, cause, getattr(self, cause) + time.monotonic() - start)

    def total_s(self) -> float:
        """All of it."""
        return sum(dataclasses.astuple(self))


class Recorder:
    """Turns step records into metrics lines and the live line; knows the latest losses for the summary.

    `every_steps`: steps between lines; `peak_flops`: FLOP/s of all devices together, for MFU.
    """

    def __init__(
        self,
        *,
        writer: MetricsWriter,
        progress: Progress,
        clock: Clock,
        spent: Spent,
        every_steps: int,
        peak_flops: float,
    ):
        self._writer, self._progress, self._clock, self._spent = writer, progress, clock, spent
        self._every_steps, self._peak_flops = every_steps, peak_flops
        self._window: list[StepRecord] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=LOSS_WINDOW)
        self._mark = self._reading()
        self._rates = {"tokens_per_s": 0.0, "mfu": 0.0}
        self._noise: tuple[float, float] | None = None
        self.last_eval: EvalResult | None = None
        self.skipped = 0

    def record(self, step: StepRecord) -> None:
        """Take in a finished step; writes a line every `every_steps`."""
        self._window.append(step)
        self._recent.append(step.metrics["loss"])
        self.skipped = int(step.metrics["skipped"])
        self._take_noise(step.metrics)
        if step.step % self._every_steps == 0 or step.fraction >= 1.0:
            self._flush()

    def _take_noise(self, metrics: dict[str, float]) -> None:
        """Running means of noise and signal, of steps of several microbatches."""
        if not metrics.get("noise") or not math.isfinite(
            metrics["noise"]
        ):  # in float16 a first gradient may be infinite
            return
        found = metrics["noise"], metrics["signal"]
        share = 1.0 / NOISE_WINDOW
        self._noise = (
            found
            if self._noise is None
            else tuple(
                old + share * (new - old) for old, new in zip(self._noise, found, strict=True)
            )
        )

    def evaluated(self, result: EvalResult, unigram_loss: float) -> None:
        """Write an evaluation's line."""
        self.last_eval = result
        step = self._clock.n_steps
        clock = self._clock
        values = {
            "elapsed_s": round(clock.elapsed_s, 3),
            "tokens": clock.n_tokens,
            "flops": clock.n_flops,
        }
        found = {
            "eval_loss": result.loss,
            "eval_accuracy": result.accuracy,
            "unigram_loss": unigram_loss,
        }
        self._writer.write(step, values | found)
        self._progress.evaluated(step, result.loss, result.accuracy, unigram_loss)

    def close(self) -> None:
        """Finish what the writer has open."""
        self._writer.close()

    @property
    def train_loss(self) -> float | None:
        """Mean training loss of the latest steps, in nats a predicted token."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def _reading(self) -> tuple[float, int, float]:
        # Evaluations, saves and compilation are taken out: the rate of a metrics line is that of the steps.
        return (
            self._clock.elapsed_s - self._spent.total_s(),
            self._clock.n_tokens,
            self._clock.n_flops,
        )

    def _flush(self) -> None:
        reading = self._reading()
        seconds, tokens, flops = (now - then for now, then in zip(reading, self._mark, strict=True))
        if (
            seconds > 0
        ):  # the clock that several processes agree on is a step late, and an evaluation is not in it yet
            self._mark = reading
            self._rates = {
                "tokens_per_s": round(tokens / seconds, 1),
                "mfu": round(flops / seconds / self._peak_flops, 4),
            }
        last = self._window[-1]
        values = {
            "elapsed_s": round(self._clock.elapsed_s, 3),
            "progress": round(last.fraction, 6),
            "tokens": self._clock.n_tokens,
            "loss": sum(r.metrics["loss"] for r in self._window) / len(self._window),
            "lr": last.lr,
            "grad_norm": last.metrics["grad_norm"],
            "batch_size": last.batch_size,
            **self._rates,
            "skipped": self.skipped,
        }
        if self._noise and self._noise[1] > 0:
            values["noise_scale"] = round(self._noise[0] / self._noise[1], 1)
        self._window.clear()
        self._writer.write(last.step, values)
        self._progress.update(
            step=last.step, fraction=last.fraction, eta_s=self._clock.remaining_s(), **values
        )

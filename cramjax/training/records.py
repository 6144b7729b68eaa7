"""The record of a run: metrics lines, the progress display, the seconds spent, and the summary."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cramjax.budget.clock import Clock
from cramjax.console import Progress
from cramjax.training.due import EvalDue
from cramjax.training.evaluate import EvalResult
from cramjax.training.loop import StepRecord
from cramjax.training.metrics import MetricsWriter, Silence
from cramjax.training.samples import Samples
from cramjax.training.session import Session

LOSS_WINDOW = 50
"""The latest steps that the summary's training loss averages."""
NOISE_WINDOW = 100
"""About the number of steps that the gradient noise scale averages: single ones say little."""


@dataclasses.dataclass
class Spent:
    """Seconds of the budget that were no training steps, by cause; kept in the checkpoint."""

    compile_s: float = 0.0
    eval_s: float = 0.0
    save_s: float = 0.0
    data_wait_s: float = 0.0
    growth_s: float = 0.0

    @contextlib.contextmanager
    def on(self, cause: str) -> Iterator[None]:
        """Count the seconds inside under `cause`, the name of a field."""
        start = time.monotonic()
        try:
            yield
        finally:
            setattr(self, cause, getattr(self, cause) + time.monotonic() - start)

    def load_state_dict(self, seconds: Mapping[str, float]) -> None:
        """Go on from the fields of an earlier start."""
        for cause, value in seconds.items():
            setattr(self, cause, value)

    def total_s(self) -> float:
        """Returns the sum over all causes."""
        return sum(dataclasses.astuple(self))


class Recorder:
    """Turns finished steps and evaluations into metrics lines, the live line and the summary.

    Args:
        writer: takes the metrics lines.
        progress: the display.
        clock: the run's clock.
        spent: the seconds that were no training steps.
        every_steps: steps between two lines.
        peak_flops: FLOP/s of all devices together, for the MFU.
        unigram_loss: held-out loss of the unigram baseline, in nats.
        started: `time.monotonic()` when the command started.
        resumed_from: the step of the checkpoint that this start goes on from, or None.
        samples: takes the guesses of evaluations, or None.
        eval_due: the rule of evaluations, for the display; None if the end alone has one.
        memory: returns `memory_bytes` and `memory_limit` for the display.

    Attributes:
        unigram_loss: as given.
        evaluated_step: the step of the latest evaluation, or None.
        scored_step: the step of the latest scores of what the network writes, or None.
    """

    def __init__(
        self,
        *,
        writer: MetricsWriter | Silence,
        progress: Progress,
        clock: Clock,
        spent: Spent,
        every_steps: int,
        peak_flops: float,
        unigram_loss: float,
        started: float,
        resumed_from: int | None = None,
        samples: Samples | None = None,
        eval_due: EvalDue | None = None,
        memory: Callable[[], Mapping[str, float | None]] = dict,
    ):
        self.unigram_loss = unigram_loss
        self._writer = writer
        self._progress = progress
        self._clock = clock
        self._spent = spent
        self._every_steps = every_steps
        self._peak_flops = peak_flops
        self._started = started
        self._resumed_from = resumed_from
        self._samples = samples
        self._eval_due = eval_due or EvalDue(every=0.0)
        self._memory = memory

        # The losses since the latest line.
        self._window: list[float] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=LOSS_WINDOW)
        self._mark = self._reading()
        self._rates = {"tokens_per_s": 0.0, "mfu": 0.0}
        self._noise: tuple[float, float] | None = None
        self._last_eval: EvalResult | None = None
        self.evaluated_step: int | None = None
        self._scores: dict[str, Any] = {}
        self.scored_step: int | None = None
        self._skipped = 0
        self._first_step_s: float | None = None

    def record(self, step: StepRecord) -> None:
        """Take in a finished step; writes a line every `every_steps`."""
        if self._first_step_s is None:
            self._first_step_s = time.monotonic() - self._started
        self._spent.data_wait_s += step.data_wait_s
        self._window.append(step.metrics["loss"])
        self._recent.append(step.metrics["loss"])
        self._skipped = int(step.metrics["skipped"])
        self._take_noise(step.metrics)
        if step.step % self._every_steps == 0 or step.fraction >= 1.0:
            self._flush(step)

    def evaluated(self, result: EvalResult) -> None:
        """Take in an evaluation and write its line."""
        self._last_eval = result
        step = self._clock.n_steps
        self.evaluated_step = step
        values = {
            "elapsed_s": round(self._clock.elapsed_s, 3),
            "tokens": self._clock.n_tokens,
            "flops": self._clock.n_flops,
            "eval_loss": result.loss,
            "eval_accuracy": result.accuracy,
            "unigram_loss": self.unigram_loss,
            **result.also,
        }
        # Where the time has gone so far: a page reads it while the run goes on.
        spent = dataclasses.asdict(self._spent)
        seconds = {cause: round(value, 3) for cause, value in spent.items()}
        self._writer.write(step, values | seconds)
        if self._samples is not None:
            self._samples.write(step, values, result.shown)
        self._progress.evaluated(step, result.loss, result.accuracy, self.unigram_loss)
        if result.also:
            means = (f"{name.replace('_', ' ')} {mean:.4f}" for name, mean in result.also.items())
            self._progress.announce(f"step {step:,}: {', '.join(means)}")

    def scored(self, scores: Mapping[str, Any]) -> None:
        """Take in "bleu", "chrf" and "bleu_signature" of what the network writes; write a line."""
        self._scores = dict(scores)
        step = self._clock.n_steps
        self.scored_step = step
        values = {
            "elapsed_s": round(self._clock.elapsed_s, 3),
            "tokens": self._clock.n_tokens,
            "flops": self._clock.n_flops,
            "bleu": scores["bleu"],
            "chrf": scores["chrf"],
        }
        self._writer.write(step, values)
        self._progress.announce(
            f"step {step:,}: BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f}"
        )

    @property
    def is_sound(self) -> bool:
        """False if the latest evaluation gave no number."""
        return self._last_eval is None or math.isfinite(self._last_eval.loss)

    def summary(self, session: Session, stop_reason: str | None) -> dict[str, Any]:
        """Returns the content of summary.json; `session` is that of the last stage."""
        clock = self._clock
        spent = self._spent
        elapsed_s = max(clock.elapsed_s, 1e-9)
        evaluated = self._last_eval
        also = evaluated.also if evaluated else {}
        # Scores on the way say nothing about the end.
        scores = self._scores if self.scored_step == clock.n_steps else {}

        return {
            "steps": clock.n_steps,
            "tokens": clock.n_tokens,
            "flops": clock.n_flops,
            "params": session.n_params,
            "elapsed_s": round(elapsed_s, 3),
            "progress": clock.fraction(),
            "train_loss": self.train_loss,
            "eval_loss": evaluated.loss if evaluated else None,
            "eval_accuracy": evaluated.accuracy if evaluated else None,
            "unigram_loss": self.unigram_loss,
            **also,
            "tokens_per_s": clock.n_tokens / elapsed_s,
            "mfu": clock.n_flops / elapsed_s / self._peak_flops,
            "compile_s": round(spent.compile_s, 3),
            "eval_s": round(spent.eval_s, 3),
            "save_s": round(spent.save_s, 3),
            "time_to_first_step_s": self._first_step_s,
            "data_wait_fraction": spent.data_wait_s / elapsed_s,
            "growth_s": round(spent.growth_s, 3),
            "goodput": max(0.0, 1 - spent.total_s() / elapsed_s),
            "skipped_updates": self._skipped,
            "stop_reason": stop_reason,
            "resumed_from": self._resumed_from,
            "precision": session.precision,
            "microbatch_size": session.microbatch_size,
            **scores,
        }

    @property
    def train_loss(self) -> float | None:
        """Mean training loss of the latest steps, in nats per predicted token."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def state_dict(self) -> dict[str, Any]:
        """Returns the record for a checkpoint, as JSON values.

        With it a killed run has the same lines and summary as an undisturbed one.
        """
        evaluated = self._last_eval
        also = evaluated.also if evaluated else {}
        return {
            "recent": [_finite(loss) for loss in self._recent],
            "window": [_finite(loss) for loss in self._window],
            "noise": self._noise,
            "skipped": self._skipped,
            "first_step_s": self._first_step_s,
            "evaluated_step": self.evaluated_step,
            "evaluated": evaluated and [_finite(evaluated.loss), _finite(evaluated.accuracy)],
            "also": {name: _finite(mean) for name, mean in also.items()},
            "scored_step": self.scored_step,
            "scores": self._scores,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._recent.extend(map(_number, state["recent"]))
        self._window = [_number(loss) for loss in state["window"]]
        if state["noise"]:
            self._noise = (state["noise"][0], state["noise"][1])
        self._skipped = state["skipped"]
        self._first_step_s = state["first_step_s"]
        self.evaluated_step = state["evaluated_step"]
        # Checkpoints that 0.2.0 wrote have no scores, and no means but loss and accuracy.
        self.scored_step = state.get("scored_step")
        self._scores = state.get("scores", {})
        if state["evaluated"]:
            loss, accuracy = map(_number, state["evaluated"])
            also = {name: _number(mean) for name, mean in state.get("also", {}).items()}
            self._last_eval = EvalResult(loss, accuracy, also)

    def close(self) -> None:
        """Finish the open files of the writer."""
        self._writer.close()
        if self._samples is not None:
            self._samples.close()

    def _take_noise(self, metrics: dict[str, float]) -> None:
        """Update the running means of noise and signal with a step of several microbatches."""
        # In float16 a first gradient may be infinite.
        if not metrics.get("noise") or not math.isfinite(metrics["noise"]):
            return
        latest = (metrics["noise"], metrics["signal"])
        if self._noise is None:
            self._noise = latest
            return

        share = 1.0 / NOISE_WINDOW
        noise, signal = self._noise
        noise += share * (latest[0] - noise)
        signal += share * (latest[1] - signal)
        self._noise = (noise, signal)

    def _reading(self) -> tuple[float, int, float]:
        """Returns seconds of training steps alone, tokens and FLOPs up to now."""
        # Without evaluations, saves and compilation: the rate of a line is that of the steps. A
        # step that waits for its batch is a slow step.
        pauses_s = self._spent.total_s() - self._spent.data_wait_s
        seconds = self._clock.elapsed_s - pauses_s
        return seconds, self._clock.n_tokens, self._clock.n_flops

    def _flush(self, last: StepRecord) -> None:
        """Write a line for the steps of the window, of which `last` is the last; show it."""
        reading = self._reading()
        seconds, tokens, flops = (
            now - before for now, before in zip(reading, self._mark, strict=True)
        )
        # The clock of several processes is a step late, and may not count an evaluation yet that
        # is already in `spent`. Then the rates stay as they were.
        if seconds > 0:
            self._mark = reading
            self._rates = {
                "tokens_per_s": round(tokens / seconds, 1),
                "mfu": round(flops / seconds / self._peak_flops, 4),
            }

        values = {
            "elapsed_s": round(self._clock.elapsed_s, 3),
            "progress": round(last.fraction, 6),
            "tokens": self._clock.n_tokens,
            "flops": self._clock.n_flops,
            "loss": sum(self._window) / len(self._window),
            "lr": last.lr,
            "grad_norm": last.metrics["grad_norm"],
            "batch_size": last.batch_size,
            **self._rates,
            "skipped": self._skipped,
        }
        if self._noise and self._noise[1] > 0:
            noise, signal = self._noise
            values["noise_scale"] = round(noise / signal, 1)

        self._window.clear()
        self._writer.write(last.step, values)
        eta_s = self._clock.remaining_s()
        self._progress.update(
            step=last.step,
            fraction=last.fraction,
            eta_s=eta_s,
            next_eval_s=self._until_evaluation(last.fraction, eta_s),
            **values,
            **self._memory(),
        )

    def _until_evaluation(self, fraction: float, eta_s: float | None) -> float | None:
        """Returns the seconds to the next evaluation; None if they are unknown or at the end."""
        if eta_s is None or fraction >= 1.0:
            return None
        return eta_s * (self._eval_due.following(fraction) - fraction) / (1.0 - fraction)


def _finite(value: float) -> float | None:
    """Returns a number as JSON has it: null for NaN and infinity."""
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value

"""The training loop and the order of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from cramjax.budget import schedules
from cramjax.budget.clock import Clock
from cramjax.config.views import Config
from cramjax.data.loader import DevicePrefetch
from cramjax.errors import RunFailed
from cramjax.parallel.coordinator import Coordinator
from cramjax.training.state import TrainState

StepFn = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
"""A compiled step: (state, batch, learning rate, microbatches) → (state, metrics)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A finished step on the host: its metrics, read one step late, and its scheduled values."""

    step: int
    fraction: float
    lr: float
    batch_size: int
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a loop.

    Attributes:
        state: the last state.
        stop_reason: a limit of the budget, a signal or "early_termination"; None at the end of a
            stage that is not the last.
        data_wait_s: seconds that the loop waited for batches.
    """

    state: TrainState
    stop_reason: str | None
    data_wait_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """The next step: its size, its share of the budget and its learning rate."""

    n_micro: int
    n_rows: int
    n_tokens: int
    n_flops: float
    fraction: float
    lr: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSchedule:
    """Sizes and learning rates of a stage's steps, by the share of the budget that is spent.

    Attributes:
        config: the configuration of the stage.
        microbatch_size: sequences in a microbatch.
        flops_per_sequence: model FLOPs for one sequence.
        since: the share at which the network grew to its size; 0.0 if it did not grow.
        until: the share at which the stage ends.
    """

    config: Config
    microbatch_size: int
    flops_per_sequence: float
    since: float = 0.0
    until: float = 1.0

    def n_microbatches(self, fraction: float) -> int:
        """Returns the number of microbatches for a step that starts at `fraction`."""
        config = self.config
        ramp = config.schedule.batch_ramp
        return schedules.n_microbatches(fraction, ramp, config.batch_size, self.microbatch_size)

    def learning_rate(self, fraction: float) -> float:
        """Returns the learning rate for a step that ends at `fraction`."""
        config = self.config
        lr = schedules.learning_rate(config.schedule, config.optimizer.lr, fraction)
        return lr * schedules.rewarm(fraction, self.since, config.growth.rewarm)

    def plan(self, n_micro: int, clock: Clock) -> PlannedStep:
        """Plan the next step, of `n_micro` microbatches, on `clock`."""
        n_rows = n_micro * self.microbatch_size
        n_tokens = n_rows * self.config.data.seq_len
        n_flops = n_rows * self.flops_per_sequence
        fraction = clock.plan_step(n_tokens, n_flops)
        return PlannedStep(
            n_micro=n_micro,
            n_rows=n_rows,
            n_tokens=n_tokens,
            n_flops=n_flops,
            fraction=fraction,
            lr=self.learning_rate(fraction),
        )

    def is_over(self, clock: Clock) -> bool:
        """Returns whether the stage has ended and another one follows."""
        # The last stage ends with the step that is planned to end the budget, never between steps.
        return self.until < 1.0 and clock.fraction() >= self.until


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dispatched:
    """A step that the device may still be computing; `metrics` are on the device."""

    number: int
    plan: PlannedStep
    metrics: dict[str, jax.Array]


def run_steps(
    step_fn: StepFn,
    state: TrainState,
    prefetch: DevicePrefetch,
    *,
    schedule: StepSchedule,
    clock: Clock,
    coordinator: Coordinator,
    before_step: Callable[[TrainState], None],
    record: Callable[[StepRecord], None],
) -> Outcome:
    """Train `state` until the stage or the budget ends, a signal arrives or the run has failed.

    The order of a round must not change: evaluate and save (`before_step`), then take the batch,
    step, and read the metrics of the step before. So a checkpoint holds a state together with the
    rows and the clock that produced it, and a resumed run draws the same next batch.

    `prefetch` gives batches from the row of the first step on, and `clock` runs. `before_step` is
    called with the state before each step, and may wait for the device. `record` gets each finished
    step one step late, and must be cheap.

    Raises:
        RunFailed: if gradients stay non-finite.
    """
    pending: _Dispatched | None = None
    reason: str | None = None
    wait_s = 0.0
    n_micro = schedule.n_microbatches(clock.fraction())
    prefetch.request(n_micro)

    while reason is None and not clock.done() and not coordinator.requested:
        if schedule.is_over(clock):
            break
        before_step(state)
        plan = schedule.plan(n_micro, clock)
        batch, waited_s = prefetch.get()
        wait_s += waited_s

        # The next batch is read while this step runs. Its size follows the share at its start.
        n_micro = schedule.n_microbatches(plan.fraction)
        prefetch.request(n_micro)

        # These transfers are intended: two `device_put` calls cost five times the call of the step.
        with jax.transfer_guard_host_to_device("allow"):
            state, metrics = step_fn(state, batch, np.float32(plan.lr), np.int32(plan.n_micro))
        coordinator.advance()

        # Only now are the metrics of the step before read, so the device never waits for the host.
        if pending is not None:
            reason = _finish(pending, schedule.config, record)
        clock.advance(plan.n_tokens, plan.n_flops, plan.n_rows)
        pending = _Dispatched(number=clock.n_steps, plan=plan, metrics=metrics)

    if pending is not None:
        reason = _finish(pending, schedule.config, record) or reason
    reason = reason or clock.which() or coordinator.reason
    return Outcome(state=state, stop_reason=reason, data_wait_s=wait_s)


def _finish(
    pending: _Dispatched, config: Config, record: Callable[[StepRecord], None]
) -> str | None:
    """Wait for a step and record its metrics; returns the reason to stop, if they are one."""
    metrics = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
    record(
        StepRecord(
            step=pending.number,
            fraction=pending.plan.fraction,
            lr=pending.plan.lr,
            batch_size=pending.plan.n_rows,
            metrics=metrics,
        )
    )

    if metrics["skipped_in_row"] >= config.optimizer.max_skipped:
        raise RunFailed(
            f"the gradient was not finite for {int(metrics['skipped_in_row'])} steps in a row "
            f"(up to step {pending.number}); the last checkpoint is kept; "
            "lower optimizer.lr or set optimizer.clip_norm, or precision=float32"
        )
    if schedules.stops_early(config.schedule, pending.plan.fraction, metrics["loss"]):
        return "early_termination"
    return None

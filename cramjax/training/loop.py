"""The training loop and the order of its parts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Protocol

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
"""A compiled step: (state, batch, seed, learning rate, microbatches) → (state, metrics)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A finished step on the host: its metrics, read one step late, and its scheduled values.

    `data_wait_s` is the time that it waited for its batch.
    """

    step: int
    fraction: float
    lr: float
    batch_size: int
    metrics: dict[str, float]
    data_wait_s: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a loop.

    Attributes:
        state: the last state.
        stop_reason: a limit of the budget, a signal or "early_termination"; None at the end of a
            stage that is not the last.
        failure: the error that ended the loop, or None; `state` is the last one before it.
    """

    state: TrainState
    stop_reason: str | None
    failure: Exception | None = None


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
        rewarm: the share over which the learning rate comes up again from `since` on.
    """

    config: Config
    microbatch_size: int
    flops_per_sequence: float
    since: float = 0.0
    until: float = 1.0
    rewarm: float = 0.0

    def n_microbatches(self, fraction: float) -> int:
        """Returns the number of microbatches for a step that starts at `fraction`."""
        config = self.config
        return schedules.n_microbatches(
            config.schedule, fraction, config.batch_size, self.microbatch_size
        )

    def learning_rate(self, fraction: float, step: int) -> float:
        """Returns the learning rate of step number `step`, from 1, which ends at `fraction`."""
        config = self.config
        at = fraction
        if config.schedule.span_steps is not None:
            at = min(1.0, step / config.schedule.span_steps)
        lr = schedules.learning_rate(config.schedule, config.optimizer.lr, at, step)
        return lr * schedules.rewarm(fraction, self.since, self.rewarm)

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
            lr=self.learning_rate(fraction, clock.n_steps + 1),
        )

    def is_over(self, clock: Clock) -> bool:
        """Returns whether the stage has ended and another one follows."""
        # The last stage ends with the step that is planned to end the budget, never between steps.
        return self.until < 1.0 and clock.fraction() >= self.until


class Pauses(Protocol):
    """Evaluations and checkpoints between steps."""

    def are_due(self) -> bool:
        """Returns whether anything is to be done before the next step; called before each step."""
        ...

    def before_step(self, state: TrainState) -> str | None:
        """Do what is due with `state`; may wait for the device.

        Returns the reason to stop, if there is one.
        """
        ...


class _InFlight:
    """The step that the device may still be computing, if any."""

    def __init__(self, config: Config, record: Callable[[StepRecord], None]):
        self._config = config
        self._record = record
        self._step: tuple[int, PlannedStep, dict[str, jax.Array], float] | None = None

    def take(
        self, number: int, plan: PlannedStep, metrics: dict[str, jax.Array], waited_s: float
    ) -> None:
        """Keep a dispatched step; its `metrics` are on the device."""
        self._step = (number, plan, metrics, waited_s)

    def settle(self) -> None:
        """Wait for the step, if there is one, and record its metrics.

        Raises:
            RunFailed: if gradients stay non-finite.
        """
        if self._step is None:
            return
        number, plan, on_device, waited_s = self._step
        self._step = None
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        self._record(
            StepRecord(
                step=number,
                fraction=plan.fraction,
                lr=plan.lr,
                batch_size=plan.n_rows,
                metrics=metrics,
                data_wait_s=waited_s,
            )
        )

        if metrics["skipped_in_row"] >= self._config.optimizer.max_skipped:
            raise RunFailed(
                f"the gradient was not finite for {int(metrics['skipped_in_row'])} steps in a row "
                f"(up to step {number}); these steps changed no parameter, and the state is saved; "
                "lower optimizer.lr or set optimizer.clip_norm, or precision=float32"
            )


def run_steps(
    step_fn: StepFn,
    state: TrainState,
    prefetch: DevicePrefetch,
    *,
    schedule: StepSchedule,
    clock: Clock,
    coordinator: Coordinator,
    pauses: Pauses,
    record: Callable[[StepRecord], None],
) -> Outcome:
    """Train `state` until the stage or the budget ends, a signal arrives or something fails.

    `prefetch` gives batches from the row of the first step on, and `clock` runs. `record` gets each
    finished step one step late, or before a pause, and must be cheap.

    An error ends the loop with its last state, so that the caller can save it first.
    """
    in_flight = _InFlight(schedule.config, record)
    loop = _Loop(
        step_fn=step_fn,
        state=state,
        prefetch=prefetch,
        schedule=schedule,
        clock=clock,
        in_flight=in_flight,
        advance=coordinator.advance,
    )
    failure: Exception | None = None
    reason: str | None = None
    try:
        reason = loop.run(pauses, lambda: coordinator.requested)
    except Exception as error:
        failure = error
        # The device may still have the step before the error.
        with contextlib.suppress(Exception):
            in_flight.settle()

    return Outcome(
        state=loop.state,
        stop_reason=reason or clock.which() or coordinator.reason,
        failure=failure,
    )


@dataclasses.dataclass(kw_only=True)
class _Loop:
    """The loop and its last state, which outlives an error."""

    step_fn: StepFn
    state: TrainState
    prefetch: DevicePrefetch
    schedule: StepSchedule
    clock: Clock
    in_flight: _InFlight
    advance: Callable[[], None]

    def run(self, pauses: Pauses, is_stopped: Callable[[], bool]) -> str | None:
        """Take step after step; returns the reason to stop that a pause gives, if any.

        The order of a round must not change: evaluate and save (`pauses`), then take the batch,
        step, and read the metrics of the step before. So a checkpoint holds a state together with
        the rows and the clock that produced it, and a resumed run draws the same next batch.
        """
        n_micro = self.schedule.n_microbatches(self.clock.fraction())
        self.prefetch.request(n_micro)
        reason: str | None = None
        while not self.clock.done() and not is_stopped():
            if self.schedule.is_over(self.clock):
                break
            if pauses.are_due():
                # The record is complete up to this step, so a checkpoint knows all of it.
                self.in_flight.settle()
                reason = pauses.before_step(self.state)
                if reason is not None:
                    break
            n_micro = self._step(n_micro)
        self.in_flight.settle()
        return reason

    def _step(self, n_micro: int) -> int:
        """Train one step of `n_micro` microbatches; returns those of the next step."""
        plan = self.schedule.plan(n_micro, self.clock)
        batch, waited_s = self.prefetch.get()

        # The next batch is read while this step runs. Its size follows the share at its start.
        n_next = self.schedule.n_microbatches(plan.fraction)
        self.prefetch.request(n_next)

        seed = np.uint32(self.schedule.config.seed)
        # These transfers are intended: two `device_put` calls cost five times the call of the step.
        with jax.transfer_guard_host_to_device("allow"):
            self.state, metrics = self.step_fn(
                self.state, batch, seed, np.float32(plan.lr), np.int32(plan.n_micro)
            )
        try:
            self.advance()
            # Only now are the metrics of the step before read, so the device never waits for the
            # host.
            self.in_flight.settle()
        finally:
            # The new state and the clock belong together, whatever the step before says.
            self.clock.advance(plan.n_tokens, plan.n_flops, plan.n_rows)
            self.in_flight.take(self.clock.n_steps, plan, metrics, waited_s)
        return n_next

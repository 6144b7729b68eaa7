"""The training loop and the order of what happens in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cramjax.budget import schedules
from cramjax.budget.clock import Clock
from cramjax.data.loader import DevicePrefetch
from cramjax.errors import RunFailed
from cramjax.stop import Stop
from cramjax.training.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A finished step on the host: device metrics read one step late, and what the schedules asked for."""

    step: int
    fraction: float
    lr: float
    batch_size: int
    metrics: dict[str, float]


@dataclasses.dataclass(kw_only=True)
class Hooks:
    """What a run does between steps; each is called with the state as it is before the next step.

    evaluate_if_due(state, fraction), save_if_due(state): may block. record(StepRecord): cheap.
    """

    evaluate_if_due: Callable[[TrainState, float], None]
    save_if_due: Callable[[TrainState], None]
    record: Callable[[StepRecord], None]


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """How a loop ended: the last state, why (None: at the share of the budget it was given), and the seconds it waited for data."""

    state: TrainState
    stop_reason: str | None
    data_wait_s: float


def run_steps(
    *,
    step_fn: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    state: TrainState,
    prefetch: DevicePrefetch,
    clock: Clock,
    config: Any,
    microbatch_size: int,
    flops_per_sequence: float,
    hooks: Hooks,
    stop: Stop,
    agree: Callable[[], None] = lambda: None,
    since: float = 0.0,
    until: float = 1.0,
) -> Outcome:
    """Train until the budget or the share `until` of it is spent, a signal arrives or the run has failed.

    `since`: share of the budget at which the network grew to what it is; 0 where it did not. `agree`: called once a step, with several
    processes `Agreement.advance`.

    Order of a round, not to be changed: evaluate, save, *then* take the batch, step, read the metrics of the step before. What is
    saved is therefore a state together with the rows and the clock that produced it, and a resumed run draws the same next batch.

    Raises:
        RunFailed: when gradients stay non-finite.
    """
    size = _batch_sizes(config, microbatch_size)
    pending: tuple[int, float, float, int, dict] | None = None
    wait_s, reason = 0.0, None
    n_micro = size(clock.fraction())
    prefetch.request(n_micro)
    while reason is None and not clock.done() and not stop.requested:
        # The whole budget ends with the step that is planned to end it, not between two steps.
        if until < 1.0 and clock.fraction() >= until:
            break
        hooks.evaluate_if_due(state, clock.fraction())
        hooks.save_if_due(state)
        rows = n_micro * microbatch_size
        n_tokens, n_flops = rows * config.data.seq_len, rows * flops_per_sequence
        fraction = clock.fraction_after_next(n_tokens, n_flops)
        lr = schedules.learning_rate(config.schedule, config.optimizer.lr, fraction)
        lr *= schedules.rewarm(fraction, since, config.growth.rewarm)
        batch, waited_s = prefetch.get()
        wait_s += waited_s
        # The next batch is asked for while this step runs; its size follows the share spent when it starts.
        n_next = size(fraction)
        prefetch.request(n_next)
        # Transfers that are meant: by `device_put` the two numbers would cost the host five times the call of the step.
        with jax.transfer_guard_host_to_device("allow"):
            state, metrics = step_fn(state, batch, np.float32(lr), np.int32(n_micro))
        agree()
        if pending is not None:
            reason = _finish(pending, config, hooks)
        clock.advance(n_tokens, n_flops, rows)
        pending = (clock.n_steps, fraction, lr, rows, metrics)
        n_micro = n_next
    if pending is not None:
        reason = _finish(pending, config, hooks) or reason
    return Outcome(
        state=state, stop_reason=reason or clock.which() or stop.reason, data_wait_s=wait_s
    )


def _batch_sizes(config: Any, microbatch_size: int) -> Callable[[float], int]:
    return lambda fraction: schedules.n_microbatches(
        fraction, config.schedule.batch_ramp, config.batch_size, microbatch_size
    )


def _finish(pending: tuple[int, float, float, int, dict], config: Any, hooks: Hooks) -> str | None:
    """Read a step's metrics (waits for that step), record them; the reason to stop, if they are one."""
    step, fraction, lr, rows, device_metrics = pending
    metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
    hooks.record(StepRecord(step=step, fraction=fraction, lr=lr, batch_size=rows, metrics=metrics))
    if metrics["skipped_in_row"] >= config.optimizer.max_skipped:
        raise RunFailed(
            f"the gradient was not finite for {int(metrics['skipped_in_row'])} steps in a row (up to step {step}); "
            "the last checkpoint is kept; lower optimizer.lr or set optimizer.clip_norm, or precision=float32"
        )
    if schedules.stops_early(config.schedule, fraction, metrics["loss"]):
        return "early_termination"
    return None

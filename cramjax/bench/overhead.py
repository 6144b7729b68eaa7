"""Host time of a step: a round of the training loop around a program that computes nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.budget.clock import Clock
from cramjax.console import Progress
from cramjax.data.loader import DevicePrefetch
from cramjax.parallel import mesh as meshes
from cramjax.parallel.coordinator import OneProcess
from cramjax.stop import StopSignal
from cramjax.training import records
from cramjax.training.loop import StepSchedule, run_steps
from cramjax.training.metrics import Silence
from cramjax.training.session import Session
from cramjax.training.state import TrainState

# The best of several measurements counts, because a disturbance only makes one slower.
N_MEASUREMENTS = 5
# Rounds of the loop in a measurement, which takes their mean.
N_ROUNDS = 400


def host_s(session: Session, state: TrainState) -> float:
    """Measure the host's seconds of one round of the training loop.

    A round is the clock, the schedules, the hand-over of a batch, the call with `state` and the
    scalars, the metrics on their way back, and the records. `state` is given up.
    """
    shape = (session.max_microbatches, session.microbatch_size, session.objective.row_tokens)
    rows = np.zeros(shape, session.token_dtype)
    batch = jax.device_put(rows, meshes.batch_sharding(session.mesh, 3, 1))
    scalars = (np.uint32(0), np.float32(0.0), np.int32(session.max_microbatches))
    step = jax.jit(idle_step, donate_argnums=0).lower(state, batch, *scalars).compile()

    times = []
    for _ in range(N_MEASUREMENTS):
        seconds, state = _timed(session, step, state, batch)
        times.append(seconds)
    return min(times)


def idle_step(
    state: TrainState, batch: Any, seed: jax.Array, lr: jax.Array, n_micro: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Stands in for a train step: the same arguments and results, no work."""
    del seed
    loss = lr * n_micro.astype(jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    return state, {"loss": loss, "grad_norm": loss + 1.0, "skipped": zero, "skipped_in_row": zero}


class _NoPauses:
    """No evaluation and no checkpoint is ever due."""

    def are_due(self) -> bool:
        return False

    def before_step(self, state: TrainState) -> None:
        del state


def _timed(
    session: Session, step: Callable[..., Any], state: TrainState, batch: jax.Array
) -> tuple[float, TrainState]:
    """Returns the mean seconds of `N_ROUNDS` rounds, and the state after them."""
    clock = Clock(hours=1.0, steps=N_ROUNDS)
    recorder = records.Recorder(
        writer=Silence(),
        progress=Progress.silent(),
        clock=clock,
        spent=records.Spent(),
        every_steps=session.config.log.every_steps,
        peak_flops=session.peak_flops,
        unigram_loss=0.0,
        started=time.monotonic(),
    )
    schedule = StepSchedule(
        config=session.config,
        microbatch_size=session.microbatch_size,
        flops_per_sequence=session.objective.flops,
    )
    units = itertools.repeat(np.zeros((session.microbatch_size, 1), session.token_dtype))

    with DevicePrefetch(
        units, lambda rows: batch, n_max_units=session.max_microbatches
    ) as prefetch:
        clock.start()
        started = time.perf_counter()
        outcome = run_steps(
            step,
            state,
            prefetch,
            schedule=schedule,
            clock=clock,
            coordinator=OneProcess(StopSignal()),
            pauses=_NoPauses(),
            record=recorder.record,
        )
        return (time.perf_counter() - started) / N_ROUNDS, outcome.state

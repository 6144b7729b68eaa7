"""What a step costs the host: a round of the training loop around a program that computes nothing."""

from __future__ import annotations

import io
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
from cramjax.stop import StopSignal
from cramjax.training import records, session
from cramjax.training.loop import Hooks, run_steps
from cramjax.training.metrics import Silence
from cramjax.training.state import TrainState

# The best of several measurements, of which each is the mean of so many rounds: whatever disturbs one makes it slower.
N_MEASUREMENTS, N_ROUNDS = 5, 400


def host_s(made: session.Session, state: TrainState) -> float:
    """Seconds of a round: clock, schedules, the hand-over of a batch, the call with `state` and scalars, metrics back, records.

    `state` is given up.
    """
    rows = np.zeros(
        (made.max_microbatches, made.microbatch_size, made.objective.row_tokens), made.token_dtype
    )
    batch = jax.device_put(rows, meshes.batch_sharding(made.mesh, 3, 1))
    scalars = np.float32(0.0), np.int32(made.max_microbatches)
    step = jax.jit(_idle, donate_argnums=0).lower(state, batch, *scalars).compile()
    times = []
    for _ in range(N_MEASUREMENTS):
        seconds, state = _timed(made, step, state, batch)
        times.append(seconds)
    return min(times)


def _idle(
    state: TrainState, batch: Any, lr: jax.Array, n_micro: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """In place of a train step: the same arguments and results."""
    loss = lr * n_micro.astype(jnp.float32)
    none = jnp.zeros((), jnp.int32)
    return state, {"loss": loss, "grad_norm": loss + 1.0, "skipped": none, "skipped_in_row": none}


def _timed(
    made: session.Session, step: Callable[..., Any], state: TrainState, batch: jax.Array
) -> tuple[float, TrainState]:
    clock = Clock(hours=1.0, steps=N_ROUNDS)
    recorder = records.Recorder(
        writer=Silence(),
        progress=Progress(stream=io.StringIO(), is_terminal=False),
        clock=clock,
        spent=records.Spent(),
        every_steps=made.config.log.every_steps,
        peak_flops=made.peak_flops,
    )
    unit = np.zeros((made.microbatch_size, 1), made.token_dtype)
    with DevicePrefetch(
        itertools.repeat(unit), lambda rows: batch, n_max_units=made.max_microbatches
    ) as prefetch:
        clock.start()
        start = time.perf_counter()
        outcome = run_steps(
            step_fn=step,
            state=state,
            prefetch=prefetch,
            clock=clock,
            config=made.config,
            microbatch_size=made.microbatch_size,
            flops_per_sequence=made.objective.flops,
            hooks=Hooks(
                evaluate_if_due=lambda state, fraction: None,
                save_if_due=lambda state: None,
                record=recorder.record,
            ),
            stop=StopSignal(),
        )
        return (time.perf_counter() - start) / N_ROUNDS, outcome.state

"""What a step costs the host beside the call of its program: the round of the training loop."""

from __future__ import annotations

import io
import itertools
import time

import jax
import numpy as np

from cramjax.budget.clock import Clock
from cramjax.data.loader import DevicePrefetch
from cramjax.parallel import mesh as meshes
from cramjax.training import records, session
from cramjax.training.loop import Hooks, run_steps
from cramjax.training.metrics import Silence
from cramjax.training.progress import Progress
from cramjax.training.state import TrainState
from cramjax.training.stop import StopSignal

# The best of several measurements, of which each is the mean of so many rounds: whatever disturbs one makes it slower.
N_MEASUREMENTS, N_ROUNDS = 5, 400


def loop_s(made: session.Session, state: TrainState, metrics: dict[str, jax.Array]) -> float:
    """Seconds of a round of the loop whose step returns `state` and `metrics` at once.

    Clock, schedules, the hand-over of a batch that is there already, scalars to the device, metrics back, records.
    """
    return min(_mean_s(made, state, metrics) for _ in range(N_MEASUREMENTS))


def _mean_s(made: session.Session, state: TrainState, metrics: dict[str, jax.Array]) -> float:
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
    whole = meshes.replicated(made.mesh)
    with DevicePrefetch(itertools.repeat(unit), lambda batch: batch, n_max_units=made.max_microbatches) as prefetch:
        clock.start()
        start = time.perf_counter()
        run_steps(
            step_fn=lambda state, batch, lr, n_micro: (state, metrics),
            state=state,
            prefetch=prefetch,
            clock=clock,
            config=made.config,
            microbatch_size=made.microbatch_size,
            flops_per_sequence=made.task.flops,
            hooks=Hooks(
                evaluate_if_due=lambda state, fraction: None, save_if_due=lambda state: None, record=recorder.record
            ),
            stop=StopSignal(),
            place_scalars=lambda scalars: jax.device_put(scalars, whole),
        )
        return (time.perf_counter() - start) / N_ROUNDS

"""What a step costs the host beside computing: the round of the training loop, and the dispatch of its program."""

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

N_ROUNDS, N_ROUNDS_COMPARED = 2000, 5


def loop_s(made: session.Session, state: TrainState, metrics: dict[str, jax.Array]) -> float:
    """Seconds of a round of the loop whose step returns `state` and `metrics` at once: the best mean of several goes.

    Clock, schedules, the hand-over of a batch that is there already, scalars to the device, metrics back, records.
    """
    return min(_go(made, state, metrics) for _ in range(N_ROUNDS_COMPARED))


def _go(made: session.Session, state: TrainState, metrics: dict[str, jax.Array]) -> float:
    n_rounds = N_ROUNDS // N_ROUNDS_COMPARED
    clock = Clock(hours=1.0, steps=n_rounds)
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
        return (time.perf_counter() - start) / n_rounds

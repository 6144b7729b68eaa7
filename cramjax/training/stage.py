"""One stage of a run while it trains: its programs and its stream of batches."""

from __future__ import annotations

import dataclasses

import jax

from cramjax.data import loader as loaders
from cramjax.parallel import mesh as meshes
from cramjax.parallel import processes
from cramjax.training.evaluate import Evaluator
from cramjax.training.loop import StepFn, StepSchedule
from cramjax.training.parts import Run
from cramjax.training.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenStage:
    """A stage that is ready to train.

    Attributes:
        number: its place among the stages, from 0.
        session: its network on the devices.
        step_fn: the compiled step.
        evaluator: scores parameters; compiled, or being compiled.
    """

    number: int
    session: Session
    step_fn: StepFn
    evaluator: Evaluator

    def schedule(self, run: Run) -> StepSchedule:
        """Returns the sizes and learning rates of the stage's steps."""
        session = self.session
        since = run.stages.until(self.number - 1) if self.number else 0.0
        return StepSchedule(
            config=session.config,
            microbatch_size=session.microbatch_size,
            flops_per_sequence=session.objective.flops,
            since=since,
            until=run.stages.until(self.number),
        )


def open_batches(run: Run, session: Session) -> loaders.DevicePrefetch:
    """Returns the stream of training batches from the clock's row on; to be closed."""
    config = run.config
    source = loaders.open_loader(
        run.dataset,
        seed=config.seed,
        seq_len=session.objective.row_shape,
        cls_token=config.data.cls_token,
        order=config.data.order,
        loader=config.data.loader,
        process_index=processes.index(),
        n_processes=processes.count(),
    )
    # Batches are [microbatches, rows, seq_len]; rows are divided among the devices.
    sharding = meshes.batch_sharding(session.mesh, 3, 1)
    return loaders.DevicePrefetch(
        source.stream(run.clock.n_rows, session.microbatch_size),
        place=lambda batch: jax.make_array_from_process_local_data(sharding, batch),
        n_max_units=session.max_microbatches,
    )

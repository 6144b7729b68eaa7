"""The switch of a run from one stage to the next: its network grows."""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import Future

from cramjax.training.growing import Prepared
from cramjax.training.milestones import Milestones
from cramjax.training.parts import Run
from cramjax.training.stage import OpenStage
from cramjax.training.state import TrainState


def wait_for(following: Future[Prepared], run: Run) -> None:
    """Wait until the next stage is prepared or a signal arrives."""
    with run.spent.on("growth_s"):
        while not following.done() and not run.coordinator.requested:
            # Short waits: a compilation must not delay the answer to a signal.
            concurrent.futures.wait([following], timeout=0.1)


def grow(
    run: Run,
    stage: OpenStage,
    state: TrainState,
    following: Future[Prepared],
    milestones: Milestones,
) -> tuple[OpenStage, TrainState]:
    """Returns the next stage and its first state, grown from `state`; evaluates before and after.

    If the network cannot grow, `state` is saved and the error raised.
    """
    try:
        before = milestones.evaluate(state)
        with run.spent.on("growth_s"):
            prepared = following.result()
            grown = prepared.grow(state)

        next_stage = OpenStage(
            number=stage.number + 1,
            session=prepared.session,
            step_fn=prepared.step_fn,
            evaluator=prepared.evaluator,
        )
        milestones.enter(next_stage)
        after = milestones.evaluate(grown)
    except Exception:
        # What this stage has learned is kept.
        milestones.enter(stage)
        milestones.rescue(state)
        raise

    n_before = stage.session.n_params
    n_after = next_stage.session.n_params
    shape = _described(run, next_stage.number)
    run.progress.announce(
        f"step {run.clock.n_steps:,}: grown from {n_before / 1e6:.1f}M to {n_after / 1e6:.1f}M "
        f"parameters ({shape}); held-out loss {before.loss:.3f} → {after.loss:.3f} "
        f"({after.loss - before.loss:+.3f})"
    )
    return next_stage, grown


def _described(run: Run, number: int) -> str:
    """Returns a stage in words, with what it learns otherwise than the one before."""
    before, after = run.stages.stages[number - 1 : number + 1]
    text = after.describe()
    if before.mask_rate != after.mask_rate:
        text += f", {after.mask_rate:.0%} of the positions predicted"
    if before.causal != after.causal:
        text += ", left to right" if after.causal else ", masked tokens"
    return text

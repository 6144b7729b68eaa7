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

    A stage with the same network is not evaluated again. If the network cannot grow, `state` is
    saved and the error raised.
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
        is_another = _is_another_network(run, next_stage.number)
        after = milestones.evaluate(grown) if is_another else before
    except Exception:
        # What this stage has learned is kept.
        milestones.enter(stage)
        milestones.rescue(state)
        raise

    now = f"now {_described(run, next_stage.number)}; held-out loss {before.loss:.3f}"
    if is_another:
        n_before = stage.session.n_params
        n_after = next_stage.session.n_params
        now = (
            f"grown from {n_before / 1e6:.1f}M to {n_after / 1e6:.1f}M parameters, {now}"
            f" → {after.loss:.3f} ({after.loss - before.loss:+.3f})"
        )
    run.progress.announce(f"step {run.clock.n_steps:,}: {now}")
    return next_stage, grown


def _is_another_network(run: Run, number: int) -> bool:
    """Returns whether stage `number` has another network than the one before.

    Lengths, masks and batches of training change neither the network nor what it is scored on.
    """
    before, after = (stage.overrides for stage in run.stages.stages[number - 1 : number + 1])
    keys = [key for key in after if key.startswith("model.") or key == "objective.pool"]
    return any(before[key] != after[key] for key in keys)


def _described(run: Run, number: int) -> str:
    """Returns a stage in words, with what it learns otherwise than the one before."""
    before, after = run.stages.stages[number - 1 : number + 1]
    text = after.describe()
    if before.mask_rate != after.mask_rate:
        text += f", {after.mask_rate:.0%} of the positions predicted"
    if before.causal != after.causal:
        text += ", left to right" if after.causal else ", masked tokens"
    return text

"""Evaluations and checkpoints of a run: made when they are due, and counted as such."""

from __future__ import annotations

import dataclasses

import jax

from cramjax.training.due import EvalDue, SaveDue
from cramjax.training.evaluate import EvalResult
from cramjax.training.parts import Run
from cramjax.training.records import Recorder
from cramjax.training.stage import OpenStage
from cramjax.training.state import TrainState


class Milestones:
    """Evaluates and saves; knows when each is due next."""

    def __init__(self, run: Run, recorder: Recorder):
        """Both are due from the clock's present readings on."""
        config = run.config
        elapsed_s = run.clock.elapsed_s
        self._run = run
        self._recorder = recorder
        self._eval_due = EvalDue(every=config.eval.every_fraction).after(run.clock.fraction())
        self._save_due = SaveDue(
            every_minutes=config.checkpoint.every_minutes,
            every_steps=config.checkpoint.every_steps,
        ).after(elapsed_s, run.clock.n_steps)

    def before_step(self, stage: OpenStage, state: TrainState) -> None:
        """Evaluate and save `state` if that is due."""
        clock = self._run.clock
        fraction = clock.fraction()
        if self._eval_due.is_due(fraction):
            self._eval_due = self._eval_due.after(fraction)
            # Steps that the device still computes are no part of the evaluation's seconds.
            jax.block_until_ready(state)
            self.evaluate(stage, state)

        # A save that failed is made up for at once.
        is_due = self._save_due.is_due(clock.elapsed_s, clock.n_steps)
        if is_due or self._run.checkpoints.save_failed:
            jax.block_until_ready(state)
            with self._run.spent.on("save_s"):
                self.save(stage, state)

    def evaluate(self, stage: OpenStage, state: TrainState) -> EvalResult:
        """Evaluate `state` inside the budget, and record the result."""
        with self._run.spent.on("eval_s"):
            result = stage.evaluator(state.params)
        self._recorder.evaluated(result)
        return result

    def save(self, stage: OpenStage, state: TrainState, *, block: bool = False) -> None:
        """Save `state` unless its step is saved; with `block`, return when it is on disk."""
        run = self._run
        step = run.clock.n_steps
        if step and run.checkpoints.latest() != step:
            sidecar = {
                "clock": run.clock.state_dict(),
                "spent": dataclasses.asdict(run.spent),
                "stage": stage.number,
            }
            sidecar |= run.identity(stage.session)
            run.checkpoints.save(step, state, sidecar, block=block)
        self._save_due = self._save_due.after(run.clock.elapsed_s, step)

"""Evaluations and checkpoints of a run: made when they are due, and counted as such."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from cramjax.parallel import processes
from cramjax.training.due import EvalDue, SaveDue
from cramjax.training.evaluate import EvalResult
from cramjax.training.finish import score
from cramjax.training.opening import describe_start
from cramjax.training.parts import Run
from cramjax.training.records import Recorder
from cramjax.training.stage import OpenStage
from cramjax.training.state import TrainState


class Milestones:
    """Evaluates and saves the state of the present stage; knows when each is due next."""

    def __init__(
        self,
        run: Run,
        recorder: Recorder,
        stage: OpenStage,
        sidecar: Mapping[str, Any] | None = None,
    ):
        """Both are due from the clock's present readings on.

        `sidecar` is that of the checkpoint that this start goes on from, or None. An evaluation
        that was due there and not made, because a signal came first, is due at once.
        """
        config = run.config
        self._run = run
        self._stage = stage
        self._recorder = recorder
        self._eval_due = _resumed(run, sidecar, "evaluations", config.eval.every_fraction)
        every = config.eval.bleu_every_fraction if run.scorer else 0.0
        self._score_due = _resumed(run, sidecar, "scorings", every)
        self._save_due = SaveDue(
            every_minutes=config.checkpoint.every_minutes,
            every_steps=config.checkpoint.every_steps,
        ).after(run.clock.elapsed_s, run.clock.n_steps)

    def enter(self, stage: OpenStage) -> None:
        """Go on with the states of `stage`."""
        self._stage = stage

    def are_due(self) -> bool:
        """Returns whether `before_step` has anything to do."""
        return self._must_evaluate() or self._must_score() or self._must_save()

    def before_step(self, state: TrainState) -> None:
        """Evaluate, score and save `state` if that is due."""
        if self._must_evaluate():
            self._eval_due = self._eval_due.after(self._run.clock.fraction())
            # Steps that the device still computes are no part of the evaluation's seconds.
            jax.block_until_ready(state)
            self.evaluate(state)

        if self._must_score():
            jax.block_until_ready(state)
            self._score(state)

        if self._must_save():
            jax.block_until_ready(state)
            with self._run.spent.on("save_s"):
                self.save(state)

    def _must_evaluate(self) -> bool:
        return self._eval_due.is_due(self._run.clock.fraction())

    def _must_score(self) -> bool:
        return self._score_due.is_due(self._run.clock.fraction())

    def _must_save(self) -> bool:
        clock = self._run.clock
        # While the shards are compared it waits for the result: a state trained on damaged rows
        # must not push out a good one. Several processes save together, and one of them compares.
        if self._run.dataset.verification.is_running and processes.count() == 1:
            return False
        # A save that failed is made up for at once.
        is_due = self._save_due.is_due(clock.elapsed_s, clock.n_steps)
        return is_due or self._run.checkpoints.save_failed

    def evaluate(self, state: TrainState) -> EvalResult:
        """Evaluate `state` inside the budget, and record the result."""
        with self._run.spent.on("eval_s"):
            result = self._stage.evaluator(state.params)
        self._recorder.evaluated(result)
        return result

    def _score(self, state: TrainState) -> None:
        """Score what `state` writes inside the budget; what a signal disturbs is due again."""
        run = self._run
        fraction = run.clock.fraction()
        with run.spent.on("eval_s"):
            is_done = score(run, self._stage.session, state.params, self._recorder)
        if is_done:
            self._score_due = self._score_due.after(fraction)

    def save(
        self, state: TrainState, *, block: bool = False, stop_reason: str | None = None
    ) -> None:
        """Save `state` unless its step is saved; with `block`, return when it is on disk.

        `stop_reason` is noted beside the last state of a loop.

        Raises:
            RunFailed: if a shard that it learned from is damaged.
        """
        run = self._run
        run.dataset.verification.raise_damage()

        step = run.clock.n_steps
        if run.folder is not None and run.folder.restore():
            describe_start(run)
            run.checkpoints.reload()
        if step and run.checkpoints.latest() != step:
            sidecar = {
                "clock": run.clock.state_dict(),
                "spent": dataclasses.asdict(run.spent),
                "stage": self._stage.number,
                "record": self._recorder.state_dict(),
                "evaluations": dataclasses.asdict(self._eval_due),
                "scorings": dataclasses.asdict(self._score_due),
                "config": run.config.to_dict(),
                "dataset": run.dataset_note(),
                "stop_reason": stop_reason,
            }
            sidecar |= run.identity(self._stage.session)
            run.checkpoints.save(step, state, sidecar, block=block)
        self._save_due = self._save_due.after(run.clock.elapsed_s, step)

    def rescue(self, state: TrainState) -> None:
        """Save `state` before an error ends the run, if the devices still have it."""
        run = self._run
        step = run.clock.n_steps
        if run.dataset.verification.is_damaged:
            return
        # Saving is a work of all processes, and an error may be one process's alone.
        if processes.count() > 1 or any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            return
        try:
            jax.block_until_ready(state)
            self.save(state, block=True)
        # Whatever it is, the error that ends the run says more.
        except Exception as error:
            run.progress.announce(f"step {step} could not be saved ({type(error).__name__})")
            return
        run.progress.announce(f"an error ends the run: checkpoint at step {step} is saved")


def _resumed(run: Run, sidecar: Mapping[str, Any] | None, name: str, every: float) -> EvalDue:
    """Returns the rule `name` of a run that starts, or goes on from a checkpoint.

    Multiples of `every` are counted anew if the checkpoint does not say how many were passed, or
    another budget or interval counted them.
    """
    due = EvalDue(every=every)
    fraction = run.clock.fraction()
    if sidecar is None or name not in sidecar:
        return due.after(fraction)
    noted = sidecar[name]
    if sidecar["clock"]["limits"] != run.clock.limits or noted["every"] != every:
        return due.after(fraction)
    return due.resumed(fraction, noted["n_passed"])

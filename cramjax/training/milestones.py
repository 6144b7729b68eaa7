"""Evaluations and checkpoints of a run: made when they are due, and counted as such."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from cramjax.budget import schedules
from cramjax.parallel import processes
from cramjax.training.due import EvalDue, SaveDue, evaluations
from cramjax.training.evaluate import EvalResult
from cramjax.training.finish import score
from cramjax.training.opening import describe_start
from cramjax.training.parts import Run
from cramjax.training.records import Recorder
from cramjax.training.stage import OpenStage
from cramjax.training.state import TrainState, averaged


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
        self._eval_due = _resumed(run, sidecar, "evaluations", evaluations(config))
        every = config.eval.bleu_every_fraction if run.scorer else 0.0
        self._score_due = _resumed(run, sidecar, "scorings", EvalDue(every=every))

        # A restart's compilation belongs to no checkpoint, and an hour may be over in it.
        passed_s = 0.0
        if sidecar is not None:
            passed_s = sidecar["clock"]["elapsed_s"]
        self._save_due = SaveDue(
            every_minutes=config.checkpoint.every_minutes,
            every_steps=config.checkpoint.every_steps,
            at_hours=_unmarked_hours(run),
            saved_at_s=run.clock.elapsed_s,
            saved_step=run.clock.n_steps,
            passed_s=passed_s,
        )
        # Hours that the checkpoint being written is kept for.
        self._hours: list[float] = []

    def enter(self, stage: OpenStage) -> None:
        """Go on with the states of `stage`."""
        self._stage = stage

    def are_due(self) -> bool:
        """Returns whether `before_step` has anything to do."""
        return self._must_evaluate() or self._must_score() or self._must_save()

    def before_step(self, state: TrainState) -> str | None:
        """Evaluate, score and save `state` if that is due.

        Returns "early_termination" if the held-out loss says that the run has failed.
        """
        if self._must_evaluate():
            fraction = self._run.clock.fraction()
            self._eval_due = self._eval_due.after(fraction)
            # Steps that the device still computes are no part of the evaluation's seconds.
            jax.block_until_ready(state)
            result = self.evaluate(state)
            if schedules.stops_early(self._run.config.schedule, fraction, result.loss):
                return "early_termination"

        if self._must_score():
            jax.block_until_ready(state)
            self._score(state)

        if self._must_save():
            jax.block_until_ready(state)
            with self._run.spent.on("save_s"):
                self.save(state)
        return None

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
            result = self._stage.evaluator(averaged(state).params)
        self._recorder.evaluated(result)
        return result

    def _score(self, state: TrainState) -> None:
        """Score what `state` writes; what a signal disturbs is due again."""
        run = self._run
        fraction = run.clock.fraction()
        if score(run, self._stage.session, averaged(state).params, self._recorder):
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
        clock = run.clock.state_dict()
        if step and run.checkpoints.latest() != step:
            sidecar = {
                "clock": clock,
                "kept_for_hours": self._hours_of(clock["elapsed_s"]),
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
        self._save_due = self._save_due.after(clock["elapsed_s"], step)

    def _hours_of(self, elapsed_s: float) -> list[float]:
        """Returns the marks of `checkpoint.at_hours` that a save after `elapsed_s` is kept for."""
        run = self._run
        run.checkpoints.wait()
        # A save that failed leaves its marks to the next one.
        if not run.checkpoints.save_failed:
            self._hours = []
        # The last step of a budget in hours ends near its limit, not always behind it.
        if run.clock.which() == "hours":
            elapsed_s = max(elapsed_s, run.clock.limits["hours"] * 3600)
        self._hours += self._save_due.hours_passed(elapsed_s)
        return self._hours

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


def _unmarked_hours(run: Run) -> tuple[float, ...]:
    """Returns the hours of `checkpoint.at_hours` for which no checkpoint up to here is kept.

    The last checkpoint of a budget is kept for its last hour, though the clock is a little before
    it. A larger budget must not keep another for that hour.
    """
    kept = run.checkpoints.marked_hours(run.clock.n_steps)
    return tuple(hours for hours in run.config.checkpoint.at_hours or () if hours not in kept)


def _resumed(run: Run, sidecar: Mapping[str, Any] | None, name: str, due: EvalDue) -> EvalDue:
    """Returns the rule `due`, called `name` in checkpoints, of a run that starts or goes on.

    Its points are counted anew if the checkpoint does not say how many were passed, or another
    budget or other points counted them.
    """
    fraction = run.clock.fraction()
    if sidecar is None or name not in sidecar:
        return due.after(fraction)
    noted = sidecar[name]
    # Checkpoints that 0.2.0 and older wrote have no points beside the multiples.
    points = (noted["every"], noted.get("also_at", []))
    is_same_budget = sidecar["clock"]["limits"] == run.clock.limits
    if not is_same_budget or points != (due.every, list(due.also_at)):
        return due.after(fraction)
    return due.resumed(fraction, noted["n_passed"])

"""One run from start to end: prepare, restore, train inside the budget, evaluate, summarize."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from cramjax import start, streams
from cramjax.config.views import Config
from cramjax.console import Progress
from cramjax.parallel import processes
from cramjax.parallel.coordinator import coordinate
from cramjax.stop import StopSignal, exit_code
from cramjax.training import (
    dataset_choice,
    equal_loss,
    history,
    opening,
    remedies,
    repeats,
    session,
    switch,
    text_amount,
)
from cramjax.training.finish import checked, finish
from cramjax.training.loop import Outcome, run_steps
from cramjax.training.metrics import Sink
from cramjax.training.milestones import Milestones
from cramjax.training.opening import Ready
from cramjax.training.parts import Run, open_run
from cramjax.training.records import Recorder
from cramjax.training.stage import OpenStage, open_batches
from cramjax.training.workdir import Workdir


def train(
    config: Config, workdir: str | os.PathLike, *, sinks: Sequence[Sink] = ()
) -> dict[str, Any]:
    """Train a configuration until its budget is spent; returns the summary.

    A workdir with a checkpoint is resumed. A finished one is left alone, and its summary returned.

    Args:
        config: the configuration, as `get_config` returns it.
        workdir: the folder of the run; a leading ~ is the home.
        sinks: objects that get every line of metrics.jsonl, as `LivePlot`.

    Raises:
        UserError: for a mistake in the configuration, the data or the workdir.
        RunFailed: if training cannot go on.
    """
    with streams.unbroken(), StopSignal() as stop:
        return _train(config, pathlib.Path(os.path.expanduser(workdir)), stop, sinks)


def train_until_stopped(config: Config, workdir: str | os.PathLike) -> int:
    """Train as a command does; returns the exit code.

    The code is 0 when the budget is spent, and 128 + n after signal n (`stop.EXIT_CODES`).
    """
    with StopSignal() as stop:
        summary = _train(config, pathlib.Path(workdir), stop)
        # The signal may have come to another process.
        code = stop.exit_code or exit_code(summary["stop_reason"])
        if code:
            processes.part()
        return code


def _train(
    config: Config, path: pathlib.Path, stop: StopSignal, sinks: Sequence[Sink] = ()
) -> dict[str, Any]:
    started = time.monotonic()
    with contextlib.ExitStack() as resources:
        # Before the first step there is nothing to save, so a signal ends the command at once:
        # the next start resumes the preparation of data and finds what is compiled.
        with stop.at_once():
            start.start(together=True)
            # Process 0 alone locks the workdir, writes into it and prints.
            progress = Progress.silent()
            folder = None
            if processes.is_first():
                folder = resources.enter_context(Workdir(path))
                progress = resources.enter_context(contextlib.closing(Progress()))
            coordinator = coordinate(stop)

            earlier = history.read(path)
            config = dataset_choice.with_tokenizer(config, earlier)
            config = text_amount.settled(config, earlier, progress.announce)
            if earlier:
                dataset_choice.refuse_another(config, earlier, path)
            if earlier and (summary := history.finished(earlier, config, path, progress.announce)):
                summary = equal_loss.compare_again(config, path, summary, progress.announce)
                return checked(summary)
            dataset = dataset_choice.open_dataset(config, earlier, path, progress.announce)
            if processes.is_first():
                resources.enter_context(dataset.verification.start(config.data.verify))
            run = open_run(
                config,
                path,
                dataset,
                folder=folder,
                progress=progress,
                coordinator=coordinator,
                started=started,
            )
            resources.enter_context(run)

            opened = opening.open_stage(run, earlier)
            progress.announce(session.describe(opened.session))
            opening.describe_run(run, opened, earlier)
            sinks = (*sinks, repeats.watch(run, opened.session))
            if earlier and (reason := history.ended_by(earlier, config)):
                # Only the end was lost: its evaluation, and what follows.
                return opening.finish_restored(run, opened, reason, sinks)
            ready = opening.make_ready(run, opened)
            recorder = opening.open_recorder(run, opened, ready.unigram_loss, sinks)
            resources.enter_context(contextlib.closing(recorder))

        sidecar = opened.restored.sidecar if opened.restored else None
        milestones = Milestones(run, recorder, ready.stage, sidecar)
        stage, outcome = _train_stages(run, ready, milestones, recorder)
        milestones.save(outcome.state, block=True, stop_reason=outcome.stop_reason)
        return finish(run, stage.session, stage.evaluator, outcome, recorder)


def _train_stages(
    run: Run, ready: Ready, milestones: Milestones, recorder: Recorder
) -> tuple[OpenStage, Outcome]:
    """Train stage by stage; returns the last stage and the end of its loop."""
    stage = ready.stage
    state = ready.state
    batches = ready.batches
    while True:
        # The programs of the next stage are compiled while this one trains.
        following = run.stages.prepare(stage.number + 1, stage.session)
        in_memory = remedies.explained(stage.session, run.dataset)
        with in_memory, batches, jax.transfer_guard("disallow"):
            outcome = run_steps(
                stage.step_fn,
                state,
                batches,
                schedule=stage.schedule(run),
                clock=run.clock,
                coordinator=run.coordinator,
                pauses=milestones,
                record=recorder.record,
            )
            if outcome.failure is not None:
                milestones.rescue(outcome.state)
                raise outcome.failure

        if following is None or outcome.stop_reason is not None:
            return stage, outcome
        switch.wait_for(following, run)
        if run.coordinator.requested:
            return stage, dataclasses.replace(outcome, stop_reason=run.coordinator.reason)

        stage, state = switch.grow(run, stage, outcome.state, following, milestones)
        batches = open_batches(run, stage.session)

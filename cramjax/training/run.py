"""One run from start to end: prepare, restore, train inside the budget, evaluate, summarize."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from cramjax import start
from cramjax.checkpoints import pretrained
from cramjax.config.views import Config
from cramjax.console import Progress
from cramjax.data import prepare
from cramjax.parallel import processes
from cramjax.parallel.coordinator import coordinate
from cramjax.stop import StopSignal, exit_code
from cramjax.training import opening, remedies, session, switch
from cramjax.training.finish import finish
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
        workdir: the folder of the run.
        sinks: objects that get every line of metrics.jsonl, as `LivePlot`.

    Raises:
        UserError: for a mistake in the configuration, the data or the workdir.
        RunFailed: if training cannot go on.
    """
    with StopSignal() as stop:
        return _train(config, pathlib.Path(workdir), stop, sinks)


def train_until_stopped(config: Config, workdir: str | os.PathLike) -> int:
    """Train as a command does; returns the exit code.

    The code is 0 when the budget is spent, 143 after SIGTERM and 130 after SIGINT.
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
    start.start(together=True)
    with contextlib.ExitStack() as resources:
        # Process 0 alone locks the workdir, writes into it and prints.
        progress = Progress.silent()
        if processes.is_first():
            resources.enter_context(Workdir(path))
            progress = resources.enter_context(contextlib.closing(Progress()))
        coordinator = coordinate(stop)

        # Before the first step there is nothing to save, so a signal ends the command at once:
        # the next start resumes the preparation of data and finds what is compiled.
        with stop.at_once():
            config = pretrained.with_tokenizer(config)
            dataset = prepare.open_data(config.data, progress.announce)
            run = open_run(
                config,
                path,
                dataset,
                progress=progress,
                coordinator=coordinator,
                started=started,
            )
            resources.enter_context(run)

            opened = opening.open_stage(run)
            progress.announce(session.describe(opened.session))
            if summary := opening.finished_summary(run, opened):
                reason = summary["stop_reason"]
                progress.announce(f"{path} is finished: {reason} after {summary['steps']} steps")
                return summary

            if opened.restored:
                progress.announce(f"resuming {path} at step {opened.restored.step}")
            if processes.is_first():
                opening.describe_run(run)
            ready = opening.make_ready(run, opened)
            recorder = opening.open_recorder(run, opened, ready, sinks)
            resources.enter_context(contextlib.closing(recorder))

        milestones = Milestones(run, recorder)
        stage, outcome = _train_stages(run, ready, milestones, recorder)
        milestones.save(stage, outcome.state, block=True)
        return finish(run, stage, outcome, recorder)


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
                before_step=functools.partial(milestones.before_step, stage),
                record=recorder.record,
            )
        run.spent.data_wait_s += outcome.data_wait_s

        if following is None or outcome.stop_reason is not None:
            return stage, outcome
        switch.wait_for(following, run)
        if run.coordinator.requested:
            return stage, dataclasses.replace(outcome, stop_reason=run.coordinator.reason)

        stage, state = switch.grow(run, stage, outcome.state, following, milestones)
        batches = open_batches(run, stage.session)

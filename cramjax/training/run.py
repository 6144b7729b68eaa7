"""One run, start to finish: prepare, restore, train inside the budget, evaluate, write the summary."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax

from cramjax import start
from cramjax.budget.clock import Clock
from cramjax.checkpoints import pretrained
from cramjax.checkpoints.checkpoint import Checkpoints
from cramjax.console import Progress
from cramjax.data import loader as loaders
from cramjax.data import prepare, tokenizers
from cramjax.data.dataset import TokenDataset
from cramjax.errors import UserError
from cramjax.files import write_json
from cramjax.parallel import mesh as meshes
from cramjax.parallel import processes
from cramjax.stop import Stop, StopSignal, exit_code
from cramjax.training import growing, plots, records, remedies, session
from cramjax.training.agreement import Agreement
from cramjax.training.loop import Hooks, Outcome, run_steps
from cramjax.training.metrics import MetricsWriter, Silence, Sink
from cramjax.training.state import TrainState, initial_state
from cramjax.training.workdir import Workdir, environment


def train(config: Any, workdir: str | os.PathLike, *, sinks: Sequence[Sink] = ()) -> dict[str, Any]:
    """Train `config` (from `get_config`) in `workdir` until its budget is spent; returns the summary.

    In a workdir that holds a checkpoint it resumes, in a finished one it returns the summary there is. `sinks` see every line of
    metrics.jsonl (`training.metrics.Sink`), as `LivePlot` does.

    Raises:
        UserError: for a mistake in the configuration, the data or the workdir. RunFailed: when training cannot go on.
    """
    with StopSignal() as stop:
        return _train(config, pathlib.Path(workdir), stop, sinks)


def train_until_stopped(config: Any, workdir: str | os.PathLike) -> int:
    """`train` for the command line: the exit code is 0 when done, 143 or 130 after SIGTERM or SIGINT."""
    with StopSignal() as stop:
        summary = _train(config, pathlib.Path(workdir), stop)
        # The signal may have been another process's.
        code = stop.exit_code or exit_code(summary["stop_reason"])
        if code:
            processes.part()
        return code


def _train(
    config: Any, path: pathlib.Path, stop: StopSignal, sinks: Sequence[Sink] = ()
) -> dict[str, Any]:
    started = time.monotonic()
    start.start(together=True)
    with _folder(path), contextlib.closing(_progress()) as progress:
        if jax.process_count() > 1:
            stop = Agreement(stop)
        with (
            stop.at_once()
        ):  # nothing to save yet: data preparation and compilation resume by themselves
            config = pretrained.with_tokenizer(config)
            dataset = open_data(config, progress)
            run = Run(config, path, dataset, progress, stop, started, sinks)
            finished = run.restore()
        if finished:
            progress.announce(
                f"{path} is finished: {finished['stop_reason']} after {finished['steps']} steps"
            )
            return finished
        try:
            outcome = run.train()
            return run.finish(outcome)
        finally:
            run.close()


def is_shared() -> bool:
    """Whether the run has several processes, of which none may compute alone."""
    return jax.process_count() > 1


def _folder(path: pathlib.Path) -> contextlib.AbstractContextManager:
    """The workdir, made and locked by the first process; the others come after it."""
    return Workdir(path) if processes.is_first() else contextlib.nullcontext()


def _progress() -> Progress:
    """What a person sees: of several processes the first one's."""
    return Progress() if processes.is_first() else Progress(stream=io.StringIO(), is_terminal=False)


def open_data(config: Any, progress: Progress) -> TokenDataset:
    """The dataset of `config`, prepared first if it is not there; says what it is."""
    directory = prepare.prepare(config.data, progress=progress)
    dataset = TokenDataset.open(directory)
    progress.announce(
        f"data: {dataset.manifest['train_tokens']:,} training tokens of {dataset.manifest['source']} in {directory}"
    )
    return dataset


class Run:
    """The objects of one run and the four things done with them: restore, train, finish, close."""

    def __init__(
        self,
        config: Any,
        workdir: pathlib.Path,
        dataset: TokenDataset,
        progress: Progress,
        stop: Stop,
        started: float,
        sinks: Sequence[Sink],
    ):
        self.sinks = sinks
        self.config, self.workdir, self.dataset = config, workdir, dataset
        self.progress, self.stop, self.started = progress, stop, started
        self.stages = growing.Stages(config, dataset, progress.announce)
        self.stage = 0
        self.session: session.Session | None = None
        self.agree = stop.advance if isinstance(stop, Agreement) else lambda: None
        self.clock = Clock(
            **config.budget.to_dict(),
            time_source=stop.now if isinstance(stop, Agreement) else time.monotonic,
        )
        self.spent = records.Spent()
        self.checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
        self.state: TrainState | None = None
        self.resumed_from: int | None = None
        self.first_step_s: float | None = None
        self.recorder: records.Recorder | None = None
        # On few cores the evaluation would keep the step waiting: it is compiled after it, while the first steps run.
        # Several processes compile in the same order, because they share their autotuning.
        n_workers = 1 if start.n_cores() <= start.FEW_CORES or is_shared() else 2
        self._compiler = ThreadPoolExecutor(n_workers, thread_name_prefix="cramjax-compiler")

    def restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint, if there is one; the summary of a run that has ended, else None."""
        restored = self.checkpoints.restore(self._enter)
        if not restored:
            self._enter({"stage": 0})
        self.progress.announce(session.describe(self.session))
        if restored:
            self.clock.load_state_dict(restored.sidecar["clock"])
            self.spent = records.Spent(**restored.sidecar["spent"])
            summary_path = self.workdir / "summary.json"
            summary = json.loads(summary_path.read_text()) if summary_path.exists() else None
            if summary and (self.clock.done() or summary["stop_reason"] == "early_termination"):
                return summary
            self.state, self.resumed_from = restored.state, restored.step
            self.progress.announce(f"resuming {self.workdir} at step {restored.step}")
        if processes.is_first():
            self._describe()
        return None

    def _describe(self) -> None:
        """Write what the run is into its folder."""
        write_json(self.workdir / "config.json", self.config.to_dict())
        kinds = [device.device_kind for device in jax.devices()]
        write_json(
            self.workdir / "environment.json",
            environment(kinds) | {"dataset": str(self.dataset.directory)},
        )
        shutil.copytree(
            self.dataset.directory / "tokenizer", self.workdir / "tokenizer", dirs_exist_ok=True
        )

    def _started_from(self, checkpoint: str, state: TrainState) -> TrainState:
        """`state` with the parameters of another model."""
        found = pretrained.read(checkpoint)
        own = tokenizers.load(self.dataset.directory / "tokenizer" / "tokenizer.json")[0]
        if own.get_vocab() != tokenizers.load(found.tokenizer_file)[0].get_vocab():
            raise UserError(
                f"init_from={checkpoint}: has another tokenizer than {self.dataset.directory}; prepare the text with "
                f"--config.data.tokenizer={found.tokenizer_file}"
            )
        self.progress.announce(
            f"starting from the parameters of {found.path}"
            + (f" at step {found.step}" if found.is_run else "")
        )
        params = pretrained.start_from(found, self.session.objective.description, state.params)
        return dataclasses.replace(state, params=params)

    def _enter(self, sidecar: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """Open the stage a checkpoint is of; the shapes of its state, and what it must agree on."""
        self.stage = min(sidecar.get("stage", 0), len(self.stages) - 1)
        self.session = self.stages.open(self.stage)
        return self.session.abstract, self._identity()

    def train(self) -> Outcome:
        """Run the loop, stage by stage."""
        # Nothing is lost by a signal until there is a step: it is not kept waiting.
        with self.stop.at_once():
            step_fn, prefetch = self._ready()
        while True:
            following = self.stages.prepare(self.stage + 1, self.session)
            with remedies.explained(self.session, self.dataset):
                outcome = self._train_stage(step_fn, prefetch)
            with self.spent.on("growth_s"):
                while (
                    outcome.stop_reason is None and not following.done() and not self.stop.requested
                ):
                    wait([following], timeout=0.1)  # a signal is not kept waiting by a compilation
            if outcome.stop_reason is not None or self.stop.requested:
                return dataclasses.replace(
                    outcome, stop_reason=outcome.stop_reason or self.stop.reason
                )
            step_fn = self._grow(outcome.state, following)
            prefetch = self._prefetch()

    def _ready(self) -> tuple[Callable[..., Any], loaders.DevicePrefetch]:
        """The compiled step and the stream of batches, with all else a step needs; the budget's clock starts here.

        Step and evaluation are compiled in threads, while the main one makes the state, reads and answers signals.
        """
        self.evaluator = self.stages.evaluator(self.stage, self.session)
        self.clock.start()
        if self.session.program is None:
            self.progress.announce("compiling the train step…")
        program = self._compiler.submit(session.compile_train_step, self.session)
        if self.config.eval.every_fraction:
            self.evaluator.compile_by(self._compiler, self.session.abstract.params)

        if self.state is None:
            self.state = self._fresh_state()
        self.unigram_loss = self.evaluator.unigram_loss(self.dataset.unigram_counts)
        prefetch = self._prefetch()
        with remedies.explained(self.session, self.dataset):
            step_fn, compile_s = program.result()

        self.spent.compile_s += compile_s
        since_s = time.monotonic() - self.started
        self.progress.announce(
            f"compiled in {compile_s:.1f} s; the first step starts after {since_s:.1f} s"
        )
        self.recorder = self._recorder()
        self._next_eval = self._eval_count(self.clock.fraction())
        self._saved_at, self._saved_step = self.clock.elapsed_s, self.clock.n_steps
        return step_fn, prefetch

    def _fresh_state(self) -> TrainState:
        """The state at step 0, with the parameters of another model where the configuration names one."""
        made, config = self.session, self.config
        state = initial_state(
            made.objective, made.optimizer, made.dynamic_scale, made.abstract, config.seed
        )
        return self._started_from(config.init_from, state) if config.init_from else state

    def _train_stage(
        self, step_fn: Callable[..., Any], prefetch: loaders.DevicePrefetch
    ) -> Outcome:
        made = self.session
        try:
            with jax.transfer_guard("disallow"):
                outcome = run_steps(
                    step_fn=step_fn,
                    state=self.state,
                    prefetch=prefetch,
                    clock=self.clock,
                    config=made.config,
                    microbatch_size=made.microbatch_size,
                    flops_per_sequence=made.objective.flops,
                    hooks=Hooks(
                        evaluate_if_due=self._evaluate_if_due,
                        save_if_due=self._save_if_due,
                        record=self._record,
                    ),
                    stop=self.stop,
                    agree=self.agree,
                    since=self.stages.until(self.stage - 1) if self.stage else 0.0,
                    until=self.stages.until(self.stage),
                )
        finally:
            prefetch.close()
        self.spent.data_wait_s += outcome.data_wait_s
        return outcome

    def _grow(self, state: TrainState, following: Future[growing.Prepared]) -> Callable[..., Any]:
        """Go over to the next stage with what `state` becomes there; returns that stage's step."""
        with self.spent.on("eval_s"):
            before = self.evaluator(state.params)
        self.recorder.evaluated(before, self.unigram_loss)
        n_params = self.session.n_params
        with self.spent.on("growth_s"):
            try:
                prepared = following.result()
            except Exception:
                self._save(
                    state, block=True
                )  # the next stage cannot be had: what this one learned is kept
                raise
            self.state = prepared.grow(state)
            self.stage, self.session, self.evaluator = (
                self.stage + 1,
                prepared.session,
                prepared.evaluator,
            )
        with self.spent.on("eval_s"):
            after = self.evaluator(self.state.params)
        self.recorder.evaluated(after, self.unigram_loss)
        self.progress.announce(
            f"step {self.clock.n_steps:,}: grown from {n_params / 1e6:.1f}M to {self.session.n_params / 1e6:.1f}M parameters "
            f"({self.stages.stages[self.stage].describe()}); "
            f"held-out loss {before.loss:.3f} → {after.loss:.3f} ({after.loss - before.loss:+.3f})"
        )
        return prepared.step_fn

    def finish(self, outcome: Outcome) -> dict[str, Any]:
        """Save the last state; when the run has ended rather than been stopped, evaluate it and write summary and picture."""
        self._save(outcome.state, block=True)
        # A signal that comes after the budget is spent finds nothing to stop: the run is finished all the same.
        if outcome.stop_reason == self.stop.reason:
            self.progress.announce(
                f"stopped by {outcome.stop_reason}: checkpoint at step {self.clock.n_steps} is saved"
            )
            return self._summary(outcome)
        elapsed_s = (
            self.clock.elapsed_s
        )  # the final evaluation and what follows come after the budget
        self.recorder.evaluated(self.evaluator(outcome.state.params), self.unigram_loss)
        self.recorder.close()
        summary = self._summary(outcome) | {"elapsed_s": round(elapsed_s, 3)}
        if not processes.is_first():
            return summary
        write_json(self.workdir / "summary.json", summary)
        plots.plot_loss(
            self.workdir / "metrics.jsonl", self.workdir / "loss.png", self.unigram_loss
        )
        self.progress.close()
        self.progress.announce(
            f"done ({outcome.stop_reason}): held-out loss {summary['eval_loss']:.3f} nats, unigram {self.unigram_loss:.3f}; "
            f"{self.workdir / 'summary.json'}, {self.workdir / 'loss.png'}"
        )
        return summary

    def close(self) -> None:
        """Wait for what is being written; called however the run ends."""
        if self.recorder is not None:
            self.recorder.close()
        self._compiler.shutdown(wait=False, cancel_futures=True)
        self.stages.close()
        self.checkpoints.close()

    def _recorder(self) -> records.Recorder:
        return records.Recorder(
            writer=self._writer() if processes.is_first() else Silence(),
            progress=self.progress,
            clock=self.clock,
            spent=self.spent,
            every_steps=self.config.log.every_steps,
            peak_flops=self.session.peak_flops,
        )

    def _writer(self) -> MetricsWriter:
        log = self.config.log
        return MetricsWriter(
            self.workdir,
            resumed_step=self.resumed_from or 0,
            tensorboard=log.tensorboard,
            wandb_project=log.wandb,
            config=self.config.to_dict(),
            sinks=self.sinks,
        )

    def _prefetch(self) -> loaders.DevicePrefetch:
        config, made = self.config, self.session
        source = loaders.open_loader(
            self.dataset,
            seed=config.seed,
            seq_len=made.objective.row_tokens,
            cls_token=config.data.cls_token,
            order=config.data.order,
            loader=config.data.loader,
            process_index=jax.process_index(),
            n_processes=jax.process_count(),
        )
        sharding = meshes.batch_sharding(made.mesh, 3, 1)
        return loaders.DevicePrefetch(
            source.stream(self.clock.n_rows, made.microbatch_size),
            place=lambda batch: jax.make_array_from_process_local_data(sharding, batch),
            n_max_units=made.max_microbatches,
        )

    def _record(self, step: Any) -> None:
        if self.first_step_s is None:
            self.first_step_s = time.monotonic() - self.started
        self.recorder.record(step)

    def _eval_count(self, fraction: float) -> int:
        every = self.config.eval.every_fraction
        # A hair is added so that 0.3 / 0.1 counts as 3.
        return math.floor(fraction / every + 1e-9) + 1 if every else sys.maxsize

    def _evaluate_if_due(self, state: TrainState, fraction: float) -> None:
        if self._eval_count(fraction) > self._next_eval:
            self._next_eval = self._eval_count(fraction)
            with self.spent.on("eval_s"):
                result = self.evaluator(state.params)
            self.recorder.evaluated(result, self.unigram_loss)

    def _save_if_due(self, state: TrainState) -> None:
        settings = self.config.checkpoint
        minutes = (self.clock.elapsed_s - self._saved_at) / 60
        steps = self.clock.n_steps - self._saved_step
        due = minutes >= settings.every_minutes or (
            settings.every_steps and steps >= settings.every_steps
        )
        if due or self.checkpoints.save_failed:
            with self.spent.on("save_s"):
                self._save(state)

    def _save(self, state: TrainState, block: bool = False) -> None:
        if self.clock.n_steps and self.checkpoints.latest() != self.clock.n_steps:
            sidecar = {
                "clock": self.clock.state_dict(),
                "spent": dataclasses.asdict(self.spent),
                "stage": self.stage,
            } | self._identity()
            self.checkpoints.save(self.clock.n_steps, state, sidecar, block=block)
        self._saved_at, self._saved_step = self.clock.elapsed_s, self.clock.n_steps

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on with the run that restores it, beside the shapes of its arrays."""
        return {
            "tokenizer_sha256": self.dataset.manifest["tokenizer_sha256"],
            "model": self.session.objective.description,
            "optimizer": self.config.optimizer.name,
        }

    def _summary(self, outcome: Outcome) -> dict[str, Any]:
        clock, spent, evaluated = self.clock, self.spent, self.recorder.last_eval
        elapsed_s = max(clock.elapsed_s, 1e-9)
        return {
            "steps": clock.n_steps,
            "tokens": clock.n_tokens,
            "flops": clock.n_flops,
            "params": self.session.n_params,
            "elapsed_s": round(elapsed_s, 3),
            "progress": clock.fraction(),
            "train_loss": self.recorder.train_loss,
            "eval_loss": evaluated.loss if evaluated else None,
            "eval_accuracy": evaluated.accuracy if evaluated else None,
            "unigram_loss": self.unigram_loss,
            "tokens_per_s": clock.n_tokens / elapsed_s,
            "mfu": clock.n_flops / elapsed_s / self.session.peak_flops,
            "compile_s": round(spent.compile_s, 3),
            "time_to_first_step_s": self.first_step_s,
            "data_wait_fraction": spent.data_wait_s / elapsed_s,
            "growth_s": round(spent.growth_s, 3),
            "goodput": max(0.0, 1 - spent.total_s() / elapsed_s),
            "skipped_updates": self.recorder.skipped,
            "stop_reason": outcome.stop_reason,
            "resumed_from": self.resumed_from,
            "precision": self.session.precision,
            "microbatch_size": self.session.microbatch_size,
        }

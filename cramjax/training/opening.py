"""Everything of a run before its first step: stage, checkpoint, files, programs, state, batches."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cramjax.checkpoints import pretrained
from cramjax.checkpoints.checkpoint import Restored
from cramjax.data import tokenizers
from cramjax.data.loader import DevicePrefetch
from cramjax.errors import UserError
from cramjax.files import copy_file, write_json
from cramjax.models import network
from cramjax.parallel import processes
from cramjax.training import history, remedies
from cramjax.training import session as sessions
from cramjax.training.due import evaluations
from cramjax.training.finish import finish
from cramjax.training.history import Earlier
from cramjax.training.loop import Outcome
from cramjax.training.metrics import MetricsWriter, Silence, Sink
from cramjax.training.parts import Run
from cramjax.training.records import Recorder
from cramjax.training.samples import Samples
from cramjax.training.session import Session
from cramjax.training.sidecar import check
from cramjax.training.stage import OpenStage, open_batches
from cramjax.training.state import TrainState, initial_state
from cramjax.training.workdir import environment
from cramjax.tuning import devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """The stage at which a run starts or goes on.

    Attributes:
        number: of the stage, from 0.
        session: its network on the devices.
        restored: the newest checkpoint, or None in a fresh workdir.
    """

    number: int
    session: Session
    restored: Restored | None

    @property
    def resumed_from(self) -> int | None:
        """The checkpoint's step, or None."""
        return self.restored.step if self.restored else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready:
    """All that the first step needs."""

    stage: OpenStage
    state: TrainState
    batches: DevicePrefetch
    unigram_loss: float


def open_stage(run: Run, earlier: Earlier | None) -> Opening:
    """Open the stage of the newest checkpoint, or the first one; clock and counts go on from there.

    Raises:
        UserError: if the checkpoint is another configuration's, the dataset has no rows for it, or
            memory or mesh do not fit.
        RunFailed: if there are checkpoints, and all are damaged.
    """
    opened: dict[int, Session] = {}

    def expected(sidecar: Mapping[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """Returns the shapes to restore into, and the entries that must agree."""
        check(sidecar)
        number = _stage_number(run, sidecar)
        run.stages.check_rows(number)
        opened[number] = run.stages.open(number)
        identity = run.identity(opened[number])
        saved = sidecar["model"]
        free = {name: saved[name] for name in network.FREE_FIELDS & saved.keys()}
        identity["model"] = identity["model"] | free
        return opened[number].abstract, identity

    verified = earlier.step if earlier else None
    restored = run.checkpoints.restore(expected, verified=verified)
    if restored is None:
        run.stages.check_rows(0)
        return Opening(number=0, session=run.stages.open(0), restored=None)

    run.clock.load_state_dict(restored.sidecar["clock"])
    run.spent.load_state_dict(restored.sidecar["spent"])
    number = _stage_number(run, restored.sidecar)
    return Opening(number=number, session=opened[number], restored=restored)


def _stage_number(run: Run, sidecar: Mapping[str, Any]) -> int:
    # A configuration may have fewer stages now. Old checkpoints have no number of a stage.
    return min(sidecar.get("stage", 0), len(run.stages) - 1)


def describe_run(run: Run, opening: Opening, earlier: Earlier | None) -> None:
    """Say where the run goes on and with which changes; describe this start in the workdir.

    Process 0 alone writes.
    """
    if not processes.is_first():
        return
    changed: history.Changes = {}
    if opening.restored and earlier:
        step = opening.restored.step
        changed = history.changes(earlier.config, run.config)
        run.progress.announce(f"resuming {run.workdir} at step {step}")
        if changed:
            run.progress.announce("changed since that checkpoint:")
        for line in history.describe(changed):
            run.progress.announce(line)

    if line := run.stages.describe_ends():
        run.progress.announce(line)
    describe_start(run)
    history.append(run.workdir, opening.resumed_from or 0, changed, run.dataset_note())


def describe_start(run: Run) -> None:
    """Write config.json, environment.json and the tokenizer into the workdir."""
    kinds = [device.device_kind for device in jax.devices()]
    write_json(run.workdir / "config.json", run.config.to_dict())
    described = environment(kinds) | {"dataset": run.dataset_note()["directory"]}
    write_json(run.workdir / "environment.json", described)
    _copy_tokenizer(run.dataset.directory / "tokenizer", run.workdir / "tokenizer")


def _copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy the files of a tokenizer; nothing else that somebody may have put beside them."""
    try:
        target.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be made ({error.strerror})") from error
    for name in tokenizers.FILES:
        if (source / name).exists():
            copy_file(source / name, target / name)


def make_ready(run: Run, opening: Opening) -> Ready:
    """Compile step and evaluation, make the state and open the batches; starts the budget's clock.

    Threads compile. Meanwhile the main thread makes the state, reads, and answers signals.

    Raises:
        UserError: if data or the model of `init_from` do not fit.
        RunFailed: if the step does not fit the device's memory.
    """
    session = opening.session
    evaluator = run.stages.evaluator(opening.number, session)

    run.clock.start()
    if session.program is None:
        run.progress.announce("compiling the train step…")
    program = run.compiler.submit(sessions.compile_train_step, session)
    if run.config.eval.every_fraction or run.config.schedule.stop_loss is not None:
        evaluator.compile_by(run.compiler, session.abstract.params)

    state = opening.restored.state if opening.restored else _fresh_state(run, session)
    unigram_loss = evaluator.unigram_loss(run.dataset.label_counts)
    batches = open_batches(run, session)
    with remedies.explained(session, run.dataset):
        step_fn, compile_s = program.result()

    run.spent.compile_s += compile_s
    run.progress.announce(
        f"compiled in {compile_s:.1f} s; the first step starts after {run.since_start_s():.1f} s"
    )
    stage = OpenStage(number=opening.number, session=session, step_fn=step_fn, evaluator=evaluator)
    return Ready(stage=stage, state=state, batches=batches, unigram_loss=unigram_loss)


def _fresh_state(run: Run, session: Session) -> TrainState:
    """Returns the state at step 0: as the seed has it, `init_from` or `init_embeddings`."""
    state = initial_state(
        session.objective,
        session.optimizer,
        session.dynamic_scale,
        session.abstract,
        run.config.seed,
    )
    if run.config.init_from:
        params = _params_of(run.config.init_from, run, session, state.params)
        return dataclasses.replace(state, params=params)
    if run.config.init_embeddings == "cooccurrence":
        # It brings SciPy, which would cost every start a third of a second.
        from cramjax.training.first_embeddings import from_cooccurrence

        run.progress.announce("counting which tokens stand near each other…")
        params = from_cooccurrence(run.dataset, session, state.params, run.config.seed)
        return dataclasses.replace(state, params=params)
    return state


def _params_of(
    checkpoint: str, run: Run, session: Session, params: dict[str, Any]
) -> dict[str, Any]:
    """Returns `params` with the values of another model."""
    origin = pretrained.read(checkpoint)
    tokenizer_file = run.dataset.directory / "tokenizer" / "tokenizer.json"
    vocabulary = tokenizers.load(tokenizer_file)[0].get_vocab()
    if vocabulary != tokenizers.load(origin.tokenizer_file)[0].get_vocab():
        raise UserError(
            f"init_from={checkpoint}: has another tokenizer than {run.dataset.directory}; "
            f"prepare the text with --config.data.tokenizer={origin.tokenizer_file}"
        )

    at_step = f" at step {origin.step}" if origin.is_run else ""
    run.progress.announce(f"starting from the parameters of {origin.path}{at_step}")
    return pretrained.start_from(origin, session.objective.description, params)


def finish_restored(
    run: Run, opening: Opening, stop_reason: str, sinks: Sequence[Sink]
) -> dict[str, Any]:
    """Finish a run that was killed between its last checkpoint and its summary.

    Returns the summary.
    """
    assert opening.restored is not None
    session = opening.session
    run.progress.announce("it has trained to its end; only the last evaluation is left")
    evaluator = run.stages.evaluator(opening.number, session)
    unigram_loss = evaluator.unigram_loss(run.dataset.label_counts)
    outcome = Outcome(state=opening.restored.state, stop_reason=stop_reason)
    recorder = open_recorder(run, opening, unigram_loss, sinks, has_ended=True)
    with contextlib.closing(recorder):
        return finish(run, session, evaluator, outcome, recorder)


def open_recorder(
    run: Run,
    opening: Opening,
    unigram_loss: float,
    sinks: Sequence[Sink],
    *,
    has_ended: bool = False,
) -> Recorder:
    """Returns the recorder, as it was at the checkpoint; metrics lines that come again are cut off.

    With `has_ended` only the last evaluation is to come.
    """
    log = run.config.log
    sidecar = opening.restored.sidecar if opening.restored else {}
    # Checkpoints that 0.2.0 and older wrote have no record.
    record = sidecar.get("record")
    # A stage ends with evaluations of its last step, after the checkpoint. If the run goes on with
    # a larger budget, they stay.
    ends_here = has_ended or run.clock.fraction() >= run.stages.until(opening.number)
    is_noted = not record or record["evaluated_step"] == opening.resumed_from
    is_scored = bool(record) and record.get("scored_step") == opening.resumed_from

    writer: MetricsWriter | Silence = Silence()
    samples = None
    since = {
        "resumed_step": opening.resumed_from or 0,
        "keeps_evaluation": is_noted or not ends_here,
    }
    if processes.is_first():
        samples = Samples(run.workdir, run.dataset, log.samples, **since)
        writer = MetricsWriter(
            run.workdir,
            **since,
            keeps_scores=is_scored or not ends_here,
            tensorboard=log.tensorboard,
            wandb_project=log.wandb,
            trackio_project=log.trackio,
            config=run.config.to_dict(),
            sinks=sinks,
        )

    recorder = Recorder(
        writer=writer,
        progress=run.progress,
        clock=run.clock,
        spent=run.spent,
        every_steps=log.every_steps,
        peak_flops=opening.session.peak_flops,
        unigram_loss=unigram_loss,
        started=run.started,
        resumed_from=opening.resumed_from,
        samples=samples,
        eval_due=evaluations(run.config),
        memory=lambda: devices.memory_use(jax.local_devices()[0]),
    )
    if record:
        recorder.load_state_dict(record)
    return recorder

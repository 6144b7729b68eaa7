"""The end of a run: its last evaluation, summary.json and loss.png."""

from __future__ import annotations

import logging
import math
import pathlib
from typing import Any

from cramjax.errors import RunFailed, UserError
from cramjax.files import write_json
from cramjax.parallel import processes
from cramjax.training import equal_loss, plots, repeats
from cramjax.training.evaluate import Evaluator
from cramjax.training.loop import Outcome
from cramjax.training.parts import Run
from cramjax.training.records import Recorder
from cramjax.training.session import Session
from cramjax.training.state import averaged

_log = logging.getLogger("cramjax")


def finish(
    run: Run, session: Session, evaluator: Evaluator, outcome: Outcome, recorder: Recorder
) -> dict[str, Any]:
    """Evaluate a run that has ended and write its results; returns the summary.

    A run that a signal has stopped is neither evaluated nor written: it goes on later. So is one
    that is stopped while it is scored. `session` and `evaluator` are those of the last stage.

    Raises:
        RunFailed: if the run has ended with a loss that is not a number.
    """
    reason = outcome.stop_reason
    # A signal that comes after the end of the budget stops nothing: the run is finished.
    if reason == run.coordinator.reason:
        return _stopped(run, session, recorder)

    # The last evaluation and the rest come after the budget, so they are not in the elapsed time.
    elapsed_s = run.clock.elapsed_s
    if recorder.evaluated_step != run.clock.n_steps:
        recorder.evaluated(evaluator(averaged(outcome.state).params))
    if not score(run, session, averaged(outcome.state).params, recorder):
        return _stopped(run, session, recorder)
    recorder.close()
    data_epochs = repeats.epochs(run.dataset, run.config, session, run.clock.n_tokens)
    summary = recorder.summary(session, reason) | {
        "elapsed_s": round(elapsed_s, 3),
        "data_epochs": round(data_epochs, 4),
    }
    if not processes.is_first():
        return checked(summary)
    summary = equal_loss.compared(run.config, run.workdir, summary, run.progress.announce)

    paths = [run.workdir / "summary.json"]
    try:
        write_json(paths[0], summary)
    except (UserError, RunFailed) as error:
        raise RunFailed(
            f"{error}; run the command again when it can: it goes on from the last checkpoint"
        ) from error

    paths += _plot(run, recorder)
    run.progress.close()
    checked(summary)
    bleu = f"BLEU {summary['bleu']:.2f}, " if "bleu" in summary else ""
    run.progress.announce(
        f"done ({reason}): {bleu}held-out loss {summary['eval_loss']:.3f} nats, "
        f"unigram {recorder.unigram_loss:.3f}; {', '.join(map(str, paths))}"
    )
    return summary


def score(run: Run, session: Session, params: dict[str, Any], recorder: Recorder) -> bool:
    """Score what a network writes, if the run asks for it and its latest evaluation has a number.

    It takes longer for a larger network and is no part of training, so it is no part of the budget.
    Otherwise sizes at equal time would not train for equal time.

    Returns:
        False if a signal has ended the writing; then nothing is recorded.
    """
    is_scored = recorder.scored_step == run.clock.n_steps
    if run.scorer is None or is_scored or not recorder.is_sound:
        return True
    with run.coordinator.paused():
        scores = run.scorer.score(session, params, lambda: run.coordinator.requested)
    if scores is None:
        return False
    recorder.scored(scores)
    return True


def _stopped(run: Run, session: Session, recorder: Recorder) -> dict[str, Any]:
    """Say that a signal has stopped the run; returns what the summary would say."""
    reason = run.coordinator.reason
    run.progress.close()
    run.progress.announce(f"stopped by {reason}: checkpoint at step {run.clock.n_steps} is saved")
    return recorder.summary(session, reason)


def checked(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the summary of a finished run.

    Raises:
        RunFailed: if the run has ended with a held-out loss that is not a number.
    """
    loss = summary["eval_loss"]
    # JSON has null for NaN and infinity.
    if loss is None or not math.isfinite(loss):
        raise RunFailed(
            "the run has ended, but its eval_loss is not a number: its parameters are useless; "
            "lower optimizer.lr, set optimizer.clip_norm or precision=float32, and start it in "
            "another workdir"
        )
    return summary


def _plot(run: Run, recorder: Recorder) -> list[pathlib.Path]:
    """Draw loss.png and return its path; without it the run is finished all the same."""
    path = run.workdir / "loss.png"
    try:
        plots.plot_loss(run.workdir / "metrics.jsonl", path, recorder.unigram_loss)
    # matplotlib raises any kind of error, for fonts and folders of its own as well.
    except Exception as error:
        _log.warning("%s: not drawn (%s: %s)", path, type(error).__name__, error)
        return []
    return [path]

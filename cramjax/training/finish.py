"""The end of a run: its last evaluation, summary.json and loss.png."""

from __future__ import annotations

from typing import Any

from cramjax.files import write_json
from cramjax.parallel import processes
from cramjax.training import plots
from cramjax.training.loop import Outcome
from cramjax.training.parts import Run
from cramjax.training.records import Recorder
from cramjax.training.stage import OpenStage


def finish(run: Run, stage: OpenStage, outcome: Outcome, recorder: Recorder) -> dict[str, Any]:
    """Evaluate a run that has ended and write its results; returns the summary.

    A run that a signal has stopped is neither evaluated nor written: it goes on later.
    """
    reason = outcome.stop_reason
    # A signal that comes after the end of the budget stops nothing: the run is finished.
    if reason == run.coordinator.reason:
        step = run.clock.n_steps
        run.progress.announce(f"stopped by {reason}: checkpoint at step {step} is saved")
        return recorder.summary(stage.session, reason)

    # The last evaluation and the rest come after the budget, so they are not in the elapsed time.
    elapsed_s = run.clock.elapsed_s
    recorder.evaluated(stage.evaluator(outcome.state.params))
    recorder.close()
    summary = recorder.summary(stage.session, reason) | {"elapsed_s": round(elapsed_s, 3)}
    if not processes.is_first():
        return summary

    summary_path = run.workdir / "summary.json"
    plot_path = run.workdir / "loss.png"
    write_json(summary_path, summary)
    plots.plot_loss(run.workdir / "metrics.jsonl", plot_path, recorder.unigram_loss)
    run.progress.close()
    run.progress.announce(
        f"done ({reason}): held-out loss {summary['eval_loss']:.3f} nats, "
        f"unigram {recorder.unigram_loss:.3f}; {summary_path}, {plot_path}"
    )
    return summary

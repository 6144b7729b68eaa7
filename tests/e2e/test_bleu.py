"""A run on pairs is scored by what it writes: BLEU on the way, at the end and after compression."""

import json
import os
import signal
import types

import pytest

from cramjax import main
from cramjax.training import metrics, scoring
from tests import stepping
from tests.data.test_pairs import sentences, write_parallel
from tests.e2e.test_pairs_main import command
from tools import compress

STEPS = ("--config.budget.steps=20", "--config.eval.every_fraction=1.0")
QUIET = ("--config.log.fill_masks=0", "--config.data.verify=at_once")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_parallel(tmp_path_factory.mktemp("text"), sentences(600))


@pytest.fixture(scope="module")
def scored(source, tmp_path_factory):
    """A run that a signal has stopped while it wrote, and that has gone on to its end.

    Dear, because two short runs compile; it shows scoring on the way, in a run that is stopped in
    it, and at the end.
    """
    folder = tmp_path_factory.mktemp("scored")
    (folder / "test").mkdir()
    test = write_parallel(folder / "test", sentences(610)[600:])
    workdir = folder / "pairs"
    bleu = ("bleu=True", "beams=2", f"bleu_source={test}", "bleu_every_fraction=0.5")
    asked = [f"--config.eval.{text}" for text in bleu]
    arguments = command(source, workdir, *STEPS, *QUIET, *asked)
    write = scoring.Scorer.score

    def stopped(self, session, params, is_stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(self, session, params, is_stopped)

    with stepping.one_device():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scoring.Scorer, "score", stopped)
            first_code = main.main(arguments)
        was_finished = (workdir / "summary.json").exists()
        code = main.main(arguments)
    summary = json.loads((workdir / "summary.json").read_text())
    return types.SimpleNamespace(
        workdir=workdir, codes=(first_code, code), was_finished=was_finished, summary=summary
    )


@pytest.mark.slow
def test_a_run_that_a_signal_ends_while_it_writes_goes_on_and_is_scored(scored):
    assert scored.codes == (143, 0) and not scored.was_finished
    summary = scored.summary
    assert 0 <= summary["bleu"] <= 100 and 0 < summary["chrf"] <= 100
    assert "tok:13a" in summary["bleu_signature"]

    lines = metrics.read(scored.workdir / "metrics.jsonl")
    found = [(line["step"], line["bleu"]) for line in lines if "bleu" in line]
    # Due at step 10; the step that follows a disturbed scoring is taken before the run stops.
    assert [step for step, _ in found] == [11, 20] and found[-1][1] == summary["bleu"]


@pytest.mark.slow
def test_training_does_not_depend_on_it(scored, source, tmp_path):
    plain = tmp_path / "plain"
    with stepping.one_device():
        assert main.main(command(source, plain, *STEPS, *QUIET)) == 0
    summary = json.loads((plain / "summary.json").read_text())
    assert summary["eval_loss"] == scored.summary["eval_loss"] and "bleu" not in summary


@pytest.mark.slow
def test_a_scored_run_is_compressed_by_bleu(scored, tmp_path):
    out = tmp_path / "small"
    arguments = ["--checkpoint", str(scored.workdir), "--bits", "32,8", "--out", str(out)]
    with stepping.one_device():
        assert compress.main(arguments) == 0
    whole, small = json.loads((out / "pareto.json").read_text())
    assert whole["metric"] == small["metric"] == "bleu"
    assert whole["value"] == pytest.approx(scored.summary["bleu"])
    assert small["bytes"] < whole["bytes"] and whole["loss"] == pytest.approx(
        scored.summary["eval_loss"]
    )

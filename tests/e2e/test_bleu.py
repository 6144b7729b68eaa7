"""A run on pairs is scored by what it writes: BLEU on the way and at the end, and stops in it."""

import json
import os
import signal

import pytest

from cramjax import main
from cramjax.training import metrics, scoring
from tests import stepping
from tests.data.test_pairs import sentences, write_parallel
from tests.e2e.test_pairs_main import command

FLAGS = (
    "--config.eval.bleu=True",
    "--config.eval.beams=2",
    "--config.budget.steps=20",
    "--config.eval.every_fraction=1.0",
    "--config.log.fill_masks=0",
    "--config.data.verify=at_once",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "test").mkdir()
    return write_parallel(folder, sentences(600)), write_parallel(
        folder / "test", sentences(610)[600:]
    )


def test_a_run_that_a_signal_ends_while_it_writes_goes_on_and_is_scored(
    files, tmp_path, monkeypatch, capfd
):
    # Dear, because two short runs compile; they show scoring on the way, at the end, in a run that
    # was stopped in it, and that no number of training depends on it.
    source, test = files
    workdir = tmp_path / "pairs"
    flags = (*FLAGS, f"--config.eval.bleu_source={test}", "--config.eval.bleu_every_fraction=0.5")
    write = scoring.Scorer.score

    def stopped(self, session, params, is_stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(self, session, params, is_stopped)

    with stepping.one_device():
        monkeypatch.setattr(scoring.Scorer, "score", stopped)
        assert main.main(command(source, workdir, *flags)) == 143
        assert not (workdir / "summary.json").exists()
        monkeypatch.setattr(scoring.Scorer, "score", write)
        assert main.main(command(source, workdir, *flags)) == 0
        summary = json.loads((workdir / "summary.json").read_text())
        lines = metrics.read(workdir / "metrics.jsonl")

        plain = tmp_path / "plain"
        assert main.main(command(source, plain, *FLAGS[2:])) == 0

    assert 0 <= summary["bleu"] <= 100 and 0 < summary["chrf"] <= 100
    assert "tok:13a" in summary["bleu_signature"]
    scored = [(line["step"], line["bleu"]) for line in lines if "bleu" in line]
    # Due at step 10; the step that follows a disturbed scoring is taken before the run stops.
    assert [step for step, _ in scored] == [11, 20] and scored[-1][1] == summary["bleu"]
    theirs = json.loads((plain / "summary.json").read_text())
    assert theirs["eval_loss"] == summary["eval_loss"] and "bleu" not in theirs
    assert "BLEU" in capfd.readouterr().err

"""Text to text from the command line: the files and guarantees of pretraining, on pairs."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest

from cramjax import main
from tests import stepping
from tests.data.test_pairs import sentences, write_parallel
from tests.e2e import test_main as cli

SMALL = (
    "--config.data.vocab_size=64", "--config.data.tokenizer=wordpiece", "--config.data.seq_len=32",
    "--config.data.target_len=24", "--config.data.heldout_fraction=0.1",
    "--config.data.max_mb=None", "--config.model.n_layers=1", "--config.model.d_model=32",
    "--config.model.n_heads=2", "--config.model.head_dim=16", "--config.model.d_ff=64",
    "--config.model.vocab_multiple=8", "--config.budget.hours=None", "--config.budget.steps=60",
    "--config.eval.batch_size=8", "--config.eval.every_fraction=0.5",
    "--config.log.tensorboard=False", "--config.batch_size=16", "--config.microbatch_size=8",
    "--config.precision=float32", "--config.log.every_steps=5", "--config.model.dropout=0.1",
    "--config.checkpoint.every_steps=20", "--config.checkpoint.keep=9",
)  # fmt: skip


def command(source, workdir, *flags):
    arguments = ["--config", "configs/t5_pairs.py", "--workdir", str(workdir)]
    data = [f"--config.data.source={source}", f"--config.data.cache_dir={workdir.parent}/data"]
    return [*arguments, *data, *SMALL, *flags]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_parallel(tmp_path_factory.mktemp("text"), sentences(600))


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pairs"
    with stepping.one_device(), contextlib.redirect_stdout(io.StringIO()) as said:
        assert main.main(command(source, workdir)) == 0
    return workdir, said.getvalue()


def test_a_run_learns_and_ends_with_sources_and_what_it_writes(finished):
    # Dear, because it takes 60 steps to learn. Only a run shows that preparation, packing,
    # training, evaluation and generation agree on the form of a pair.
    workdir, said = finished
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["eval_loss"] < summary["unigram_loss"] - 0.3
    assert summary["data_epochs"] > 1 and summary["tokens"] == 60 * 16 * 32
    shown = [line for line in said.splitlines() if "→" in line]
    assert shown[0].startswith("held-out pairs") and len(shown) == 4


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(finished, source, tmp_path):
    workdir, _ = finished
    halves = tmp_path / "halves"
    # As if it had been killed after its first checkpoint.
    shutil.copytree(workdir, halves)
    for step in (40, 60):
        shutil.rmtree(halves / "checkpoints" / str(step))
    (halves / "summary.json").unlink()
    with stepping.one_device():
        assert main.main(command(source, halves, "--config.log.fill_masks=0")) == 0
    theirs, ours = cli.params(workdir), cli.params(halves)
    assert theirs.keys() == ours.keys() and len(theirs) > 5
    for name in theirs:
        np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)


@pytest.mark.slow
def test_a_run_grows_and_starts_from_another(finished, source, tmp_path):
    workdir, _ = finished
    stages = "[{'until': 0.5, 'depth': 1, 'length': 0.75}]"
    grown = ("--config.model.n_layers=2", f"--config.growth.stages={stages}")
    with stepping.one_device():
        assert main.main(command(source, tmp_path / "grown", *grown)) == 0
        started = (f"--config.init_from={workdir}", "--config.budget.steps=4")
        assert main.main(command(source, tmp_path / "started", *started)) == 0
    rows = [line["eval_loss"] for line in cli.lines(tmp_path / "grown") if "eval_loss" in line]
    assert rows[-1] < rows[0]
    # It goes on from where the other run was.
    scores = [json.loads((run / "summary.json").read_text())["eval_loss"] for run in (
        workdir, tmp_path / "started"
    )]  # fmt: skip
    assert scores[1] < scores[0] + 0.1


@pytest.mark.slow
def test_a_run_is_compressed_and_exported_as_the_stock_class(finished, tmp_path):
    from tools import compress, export_hf

    workdir, _ = finished
    out = ["--prune", "0,0.5", "--bits", "32,8", "--out", str(tmp_path / "small")]
    with stepping.one_device():
        assert compress.main(["--checkpoint", str(workdir), *out]) == 0
    points = json.loads((tmp_path / "small" / "pareto.json").read_text())
    summary = json.loads((workdir / "summary.json").read_text())
    whole = [point["value"] for point in points if (point["prune"], point["bits"]) == (0, 32)]
    assert len(points) == 4 and whole == [pytest.approx(summary["eval_loss"], rel=1e-4)]

    assert export_hf.main(["--checkpoint", str(workdir), "--out", str(tmp_path / "hf")]) == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "text to text: the target of each source" in card and "extra_id" not in card
    assert str(tmp_path) not in card


@pytest.mark.slow
def test_a_mixture_of_tasks_is_trained_on_and_its_model_finetuned_on_one(tmp_path):
    from tests.finetuning import grammar
    from tools import finetune

    glue = grammar.write_glue(tmp_path / "glue")
    workdir = tmp_path / "tasks"
    data = (f"--config.data.heldout=glue:{glue}", "--config.data.mixture_limit=100")
    sizes = ("--config.data.seq_len=64", "--config.data.vocab_size=400")
    flags = (*data, *sizes, "--config.budget.steps=30", "--config.log.fill_masks=1")
    with stepping.one_device():
        assert main.main(command(f"glue:{glue}", workdir, *flags)) == 0
        summary = json.loads((workdir / "summary.json").read_text())
        assert summary["eval_loss"] < summary["unigram_loss"]
        places = ["--checkpoint", str(workdir), "--data_dir", str(glue), "--out", str(tmp_path)]
        quick = ["--task", "cola", "--seeds", "1", "--set", "max_steps=3", "--set", "batch_size=8"]
        assert finetune.main([*places, *quick]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["cola"]["n_eval"] > 0

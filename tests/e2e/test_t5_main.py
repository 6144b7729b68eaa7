"""A T5 from the command line: the files and guarantees of a masked LM, and a demonstration."""

import contextlib
import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from cramjax import main
from tests import stepping
from tests.e2e import test_main as cli

SMALL = (
    "--config.data.vocab_size=300", "--config.data.extra_ids=20", "--config.data.seq_len=48",
    "--config.data.heldout_fraction=0.1", "--config.data.max_mb=None",
    "--config.data.loader=numpy", "--config.model.n_layers=1", "--config.model.d_model=64",
    "--config.model.n_heads=2", "--config.model.head_dim=24", "--config.model.d_ff=96",
    "--config.model.vocab_multiple=8", "--config.budget.hours=None", "--config.budget.steps=60",
    "--config.eval.batch_size=16", "--config.eval.batches=2", "--config.eval.every_fraction=0.5",
    "--config.log.every_steps=5", "--config.log.tensorboard=False", "--config.batch_size=16",
    "--config.microbatch_size=8", "--config.precision=float32",
    "--config.schedule.batch_ramp=0.5", "--config.checkpoint.every_steps=7",
)  # fmt: skip


def command(corpus, workdir, *flags):
    return cli.command(corpus, workdir, *SMALL, *flags, recipe="configs/t5_1day.py")


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "t5"
    arguments = command(corpus, workdir, "--config.checkpoint.every_steps=30")
    with stepping.one_device(), contextlib.redirect_stdout(io.StringIO()) as said:
        assert main.main(arguments[3:]) == 0
    return workdir, said.getvalue()


def test_a_run_learns_and_ends_with_filled_spans(undisturbed):
    # Dear, because it takes 60 steps to learn. The tests of the objective see losses; only a run
    # shows that preparation, training, evaluation and generation agree on sentinels.
    workdir, said = undisturbed
    summary = json.loads((workdir / "summary.json").read_text())
    assert (
        summary["stop_reason"] == "steps" and summary["eval_loss"] < summary["unigram_loss"] - 0.3
    )
    assert (workdir / "loss.png").stat().st_size and (
        workdir / "tokenizer" / "tokenizer.model"
    ).exists()
    train = [line for line in cli.lines(workdir) if "loss" in line]
    assert (
        train[0]["batch_size"] == 8
        and train[-1]["batch_size"] == 16
        and train[-1]["progress"] == 1.0
    )
    assert "held-out sentences" in said and "→" in said


@pytest.mark.slow
def test_a_trained_t5_generates_and_fills_from_python(undisturbed):
    code = (
        "import sys, cramjax; model = cramjax.load(sys.argv[1]); "
        "text = 'anna reads <extra_id_0> in the garden . this <extra_id_1> story'; "
        "one, two = cramjax.fill_spans(model, text, max_len=16); "
        "texts = [text, 'boris <extra_id_0> boats']; "
        "batch = cramjax.generate(model, texts, max_len=16, n_beams=3); "
        "assert batch[0] == cramjax.generate(model, texts[:1], max_len=16, n_beams=3)[0]; "
        "assert len(batch) == 2 and all('extra_id' not in answer for answer in batch); "
        "print(repr(one))"
    )
    done = cli.run([sys.executable, "-c", code, str(undisturbed[0])])
    assert done.stdout.strip()
    for call in ("fill_mask(model, 'anna')", "fill_spans(model, 'anna')"):
        wrong = f"import sys, cramjax; model = cramjax.load(sys.argv[1]); cramjax.{call}"
        failed = cli.run([sys.executable, "-c", wrong, str(undisturbed[0])], check=False)
        assert "UserError" in failed.stderr and "extra_id_0" in failed.stderr


@pytest.mark.slow
def test_killed_and_restarted_the_parameters_are_bit_identical(corpus, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    cli.run(command(corpus, whole))
    process = subprocess.Popen(
        command(corpus, killed),
        cwd=cli.ROOT,
        env=cli.environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    cli.wait_for_step(killed, 20, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = cli.run(command(corpus, killed))
    assert (
        "resuming" in done.stderr
        and json.loads((killed / "summary.json").read_text())["steps"] == 60
    )
    theirs, ours = cli.params(whole), cli.params(killed)
    assert theirs.keys() == ours.keys()
    for name in theirs:
        np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)


@pytest.mark.parametrize("recipe", ["configs/t5_1day.py", "configs/quickstart.py"])
def test_show_batch_prints_what_the_first_step_reads_and_trains_nothing(
    corpus, tmp_path, capsys, recipe
):
    t5 = "t5" in recipe
    flags = SMALL if t5 else (*cli.SMALL, "--config.budget.steps=5")
    arguments = cli.command(corpus, tmp_path / "run", *flags, "--show_batch", "3", recipe=recipe)
    assert main.main(arguments[3:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 9
        and [line.startswith("example") for line in lines] == [True, False, False] * 3
    )
    hidden = "<extra_id_0>" if t5 else "[MASK]"
    assert all(hidden in line for line in lines[1::3]) and not (tmp_path / "run").exists()
    if t5:
        assert all(line.strip().startswith("targets: <extra_id_0>") for line in lines[2::3])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.data.extra_ids=1"], "data.extra_ids=1: 48 input tokens have"),
        (
            ["--config.model.positions=rotary"],
            "model.positions: a key of the encoder family; model.family is t5",
        ),
        (["--config.model.attention=cudnn"], "needs an NVIDIA GPU"),
        (["--config.optimizer.relative_step=True"], "belongs to adafactor"),
        (["--config.objective.name=mlm"], "must be 'span_corruption'"),
        (["--show_batch", "0"], "--show_batch"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(corpus, tmp_path, capsys, flags, message):
    try:
        code, said = cli.run_here(capsys, command(corpus, tmp_path / "run", *flags))
    except SystemExit as end:  # of the parser
        code, said = end.code, capsys.readouterr().err
    assert code == 2 and message in said and "Traceback" not in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

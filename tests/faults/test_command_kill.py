"""Commands that are ended at random moments: their exit codes, and that the next start goes on."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from cramjax import stop
from tests.e2e import test_finetune_tool, test_probe_tool, test_sweep_tool
from tests.e2e import test_main as cli
from tests.finetuning import grammar

pytestmark = pytest.mark.slow
PATIENCE_S = 60
ALL = list(stop.EXIT_CODES)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return grammar.write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def commands(small_run, glue, corpus, tmp_path_factory):
    """Returns the command lines by name."""
    folder = tmp_path_factory.mktemp("out")
    pairs = tmp_path_factory.mktemp("blimp")
    sentences = [("anna reads books .", "anna books reads .")] * 200
    test_probe_tool.write_paradigm(pairs, "verb_before_thing", "syntax", sentences)
    tool = [sys.executable, "-m"]
    given = ["--checkpoint", str(small_run), "--out"]
    finetune = ("--task=cola,rte", "--seeds=2", "--save", "--submission")
    held_out = ["--prune", "0,0.5", "--bits", "32,8"]
    return {
        "finetune": test_finetune_tool.flags(small_run, glue, folder / "finetune", *finetune),
        "probe": test_probe_tool.flags(small_run, pairs, "--out", str(folder / "blimp.json")),
        "compress": [*tool, "tools.compress", *given, str(folder / "compress"), *held_out],
        "export": [*tool, "tools.export_hf", *given, str(folder / "hf")],
        "sweep": test_sweep_tool.command(
            corpus, folder / "sweep", "--config.budget.steps=300", "--grid", "seed=0,1"
        ),
    }


def ended(command, signals, after_s):
    """Run `command` and send it `signals` after some seconds; returns its exit code and output."""
    child = subprocess.Popen(
        command,
        cwd=cli.ROOT,
        env=cli.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    time.sleep(after_s)
    for signum in signals:
        # To the whole group, as a terminal and a scheduler do.
        if child.poll() is None:
            os.killpg(child.pid, signum)
    said, _ = child.communicate(timeout=PATIENCE_S)
    return child.returncode, said


@pytest.mark.parametrize("name", ["finetune", "probe", "compress", "export", "sweep"])
def test_a_command_that_is_stopped_says_so_and_goes_on(commands, name):
    chooser = random.Random()
    for n_signals in (1, 1, 1, 2, 3):
        signals = chooser.sample(ALL, n_signals)
        code, said = ended(commands[name], signals, chooser.uniform(0.3, 9))
        assert code in {0, *(stop.EXIT_CODES[signum] for signum in signals)}, (signals, said)
        assert "Traceback" not in said and "Exception ignored" not in said, (signals, said)
    cli.run(commands[name])


def test_a_finetuning_that_is_killed_over_and_over_gives_the_same(small_run, glue, tmp_path):
    more = ("--task=cola,rte", "--seeds=2", "--save", "--submission")
    whole = test_finetune_tool.flags(small_run, glue, tmp_path / "whole", *more)
    cli.run(whole)
    killed = test_finetune_tool.flags(small_run, glue, tmp_path / "killed", *more)
    chooser = random.Random()
    for _ in range(8):
        ended(killed, [signal.SIGKILL], chooser.uniform(3, 9))
    cli.run(killed)

    expected, found = (tmp_path / "whole", tmp_path / "killed")
    for name in ("predictions/cola.tsv", "predictions/rte.tsv", "submission.zip"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert len(list(found.glob("models/*/*/*/checkpoints/1"))) == 4
    for task, metric in (("cola", "matthews"), ("rte", "accuracy")):
        results = [json.loads((out / "results.json").read_text()) for out in (expected, found)]
        assert results[0][task][metric] == results[1][task][metric]


@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGHUP])
def test_a_sweep_that_is_killed_takes_its_run_along_and_goes_on(corpus, tmp_path, killed):
    arguments = test_sweep_tool.command(
        corpus, tmp_path, "--config.budget.steps=600", "--grid", "seed=0,1"
    )
    process = subprocess.Popen(
        arguments, cwd=cli.ROOT, env=cli.environment(), stderr=subprocess.DEVNULL
    )
    cli.wait_for_step(tmp_path / "seed-0", 20, process)
    process.send_signal(killed)
    assert process.wait(timeout=PATIENCE_S) == stop.EXIT_CODES.get(killed, -killed)

    # At once, while the run of before may still be saving.
    again = cli.run(arguments)
    assert [row["status"] for row in test_sweep_tool.rows(tmp_path)] == ["finished"] * 2, again
    log = (tmp_path / "seed-0" / "log.txt").read_text()
    reason = "sigterm" if killed == signal.SIGKILL else "sighup"
    assert f"stopped by {reason}: checkpoint at step" in log
    assert "resuming" in log and "error" not in log

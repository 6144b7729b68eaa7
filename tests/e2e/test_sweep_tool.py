"""A sweep as a user runs it: real processes, on a small corpus."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(corpus, out, *flags):
    small = (
        f"data.source=text:{corpus}", f"data.cache_dir={corpus.parent / 'prepared'}",
        "data.vocab_size=256", "data.seq_len=32", "data.heldout_fraction=0.1", "model.d_model=32",
        "model.d_ff=64", "batch_size=16", "eval.batch_size=16", "log.tensorboard=False",
        "log.fill_masks=0",
    )  # fmt: skip
    tool = [sys.executable, "-m", "tools.sweep", "--config", "configs/quickstart.py:smoke"]
    overrides = [f"--config.{override}" for override in small]
    return [*tool, "--out", str(out), *overrides, *flags]


def environment():
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(arguments):
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )


def rows(out):
    with (out / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def contents(out):
    return {path: path.read_bytes() for path in out.glob("*/*") if path.is_file()}


@pytest.mark.slow
def test_two_points_are_trained_once(corpus, tmp_path):
    out = tmp_path / "sweep"
    arguments = command(
        corpus, out, "--config.budget.steps=4", "--grid", "optimizer.lr=0.001,0.002"
    )
    listed = run([*arguments, "--dry_run"])
    assert listed.stdout.split() == [
        "pending",
        "optimizer.lr-0.001",
        "pending",
        "optimizer.lr-0.002",
    ]
    assert not out.exists()

    first = run(arguments)
    assert first.returncode == 0, first.stderr
    table = rows(out)
    ends = [(row["status"], row["steps"], row["stop_reason"]) for row in table]
    assert ends == [("finished", "4", "steps")] * 2
    for row in table:
        workdir = pathlib.Path(row["workdir"])
        config = json.loads((workdir / "config.json").read_text())
        summary = json.loads((workdir / "summary.json").read_text())
        assert config["optimizer"]["lr"] == float(row["optimizer.lr"])
        assert summary["eval_loss"] == float(row["eval_loss"])
        assert "done (steps)" in (workdir / "log.txt").read_text()
    assert (out / "sweep.png").stat().st_size > 5000

    before = contents(out)
    second = run(arguments)
    assert second.returncode == 0
    assert "2 of them finished before" in second.stderr
    # A process that had been started would have added to log.txt.
    assert contents(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("how, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_run_which_saves_a_checkpoint(corpus, tmp_path, how, code):
    arguments = command(corpus, tmp_path, "--config.budget.steps=1000000", "--grid", "seed=0,1")
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.05)

    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr and "stopped" in stderr
    assert [row["status"] for row in rows(tmp_path)] == ["stopped", "pending"]
    assert list((tmp_path / "seed-0" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--grid", "optimizer.rl=0.1,0.2"], "did you mean optimizer.lr"),
        (["--grid", "seed"], "must be KEY=V1,V2"),
        ([], "--grid"),
    ],
)
def test_a_mistake_is_told_without_a_run(corpus, tmp_path, flags, message):
    done = run(command(corpus, tmp_path / "sweep", *flags))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sweep").exists()

"""One run by several real processes over loopback.

Two and four processes learn the same as one. Kills and signals reach all of them.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from cramjax import main
from cramjax.errors import UserError
from cramjax.parallel import processes
from tests import stepping
from tests.conftest import QUICK_TO_COMPILE

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = (
    "--config.data.vocab_size=256",
    "--config.data.seq_len=32",
    "--config.data.heldout_fraction=0.1",
    "--config.data.loader=numpy",
    "--config.model.n_layers=1",
    "--config.model.first_norm=True",
    "--config.model.d_model=32",
    "--config.model.d_ff=64",
    "--config.budget.hours=None",
    "--config.eval.batch_size=16",
    "--config.eval.batches=2",
    "--config.eval.every_fraction=0.5",
    "--config.log.every_steps=1",
    "--config.log.tensorboard=False",
    "--config.log.fill_masks=0",
    "--config.batch_size=16",
    "--config.microbatch_size=8",
    "--config.precision=float32",
    "--config.optimizer.name=adamw",
    "--config.optimizer.lr=5e-3",
)


def command(corpus, workdir, *flags):
    return [
        sys.executable,
        "-m",
        "cramjax.main",
        "--config=configs/quickstart.py",
        f"--workdir={workdir}",
        f"--config.data.source=text:{corpus}",
        f"--config.data.cache_dir={corpus.parent / 'prepared'}",
        *SMALL,
        *flags,
    ]


def start(corpus, workdir, *flags, n=1, devices=1):
    """Start `n` processes with so many devices each, as a person would by hand."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]

    xla_flags = f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}"
    children = []
    for number in range(n):
        environment = os.environ | {"XLA_FLAGS": xla_flags, "PYTHONPATH": str(ROOT)}
        if n > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(n),
                "JAX_PROCESS_ID": str(number),
            }
        child = subprocess.Popen(
            command(corpus, workdir, *flags),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        children.append(child)
    return children


def end(children, timeout_s=240):
    """Wait for the children; returns their exit codes and outputs."""
    try:
        said = [child.communicate(timeout=timeout_s)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    return [child.returncode for child in children], said


def losses(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def wait_for_step(workdir, step, children, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    path = workdir / "metrics.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and any(
            json.loads(line)["step"] >= step
            for line in path.read_text().splitlines()
            if line.endswith("}")
        ):
            return
        assert all(child.poll() is None for child in children), end(children)[1]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {end(children)[1]}")


def test_two_processes_learn_what_one_does(corpus, tmp_path):
    # Dear, because two processes start JAX. Only real processes share a clock, divide the reading
    # of rows and reduce gradients over gloo; the mesh tests of one process do none of these. Nor do
    # they hand the embeddings that one has counted to the others.
    flags = ("--config.budget.steps=12", "--config.init_embeddings=cooccurrence")
    with stepping.one_device():
        assert main.main(command(corpus, tmp_path / "one", *flags)[3:]) == 0
    codes, said = end(start(corpus, tmp_path / "pair", *flags, n=2, devices=2))
    assert set(codes) == {0}, said
    alone, pair = losses(tmp_path / "one"), losses(tmp_path / "pair")
    assert list(pair) == list(alone) == list(range(1, 13))
    assert list(pair.values()) == pytest.approx(list(alone.values()), abs=2e-4)
    assert "parameters on 4 ×" in said[0] and "step" not in said[1]  # the first one speaks
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "pair")
    ]
    assert summaries[1]["eval_loss"] == pytest.approx(summaries[0]["eval_loss"], abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_takes_the_others_down_with_a_message(corpus, tmp_path, victim):
    children = start(corpus, tmp_path / "run", "--config.budget.steps=100000", n=2, devices=2)
    wait_for_step(tmp_path / "run", 6, children)
    children[victim].kill()
    other = children[1 - victim]
    code, text = other.wait(timeout=4 * processes.HEARTBEAT_S), other.stdout.read()
    assert code != 0
    assert any(
        words in text for words in ("another task died", "distributed service", "leader task died")
    ), text


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 4])
def test_other_numbers_of_processes_go_on_from_a_checkpoint(corpus, tmp_path, n):
    """Two processes are killed after a checkpoint; `n` go on, to the end of one undisturbed."""
    steps, often = "--config.budget.steps=40", "--config.checkpoint.every_steps=5"
    codes, said = end(start(corpus, tmp_path / "whole", steps))
    assert codes == [0], said
    children = start(corpus, tmp_path / "run", steps, often, n=2)
    wait_for_step(tmp_path / "run", 12, children)
    for child in children:
        child.kill()
    end(children)
    codes, said = end(start(corpus, tmp_path / "run", steps, often, n=n))
    assert codes == [0] * n and "resuming" in said[0], said
    wanted, found = losses(tmp_path / "whole"), losses(tmp_path / "run")
    assert list(found) == list(wanted)
    assert list(found.values()) == pytest.approx(list(wanted.values()), abs=1e-3)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(corpus, tmp_path):
    children = start(corpus, tmp_path / "run", "--config.budget.steps=100000", n=2)
    wait_for_step(tmp_path / "run", 3, children)
    children[1].send_signal(signal.SIGTERM)
    codes, said = end(children)
    assert codes == [143, 143], said
    assert "stopped by sigterm: checkpoint at step" in said[0]
    saved = [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(saved) == 1 and not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_budget_of_time_ends_all_processes_at_the_same_step(corpus, tmp_path):
    codes, said = end(start(corpus, tmp_path / "run", "--config.budget.hours=0.002", n=2))
    assert codes == [0, 0], said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stop_reason"] == "hours" and summary["progress"] == 1.0


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({}, None),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1},
        ),
        # In a batch script, before srun.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "n[1-2]",
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "2",
            },
            {},
        ),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_STEP_NODELIST": "n1",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
            },
            None,
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_others_are_looked_for_where_there_are_any(monkeypatch, given, wanted):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "JAX_NUM", "JAX_PROCESS", "JAX_COORD")):
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert processes.arguments() == wanted


@pytest.mark.parametrize(
    "given, message",
    [
        ({"JAX_PROCESS_ID": "1"}, "set JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES as well"),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "1"},
            "whole numbers",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "must be from 0 to 1",
        ),
    ],
)
def test_half_a_description_of_the_others_is_refused(monkeypatch, given, message):
    for name in processes.BY_HAND:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        processes.join()

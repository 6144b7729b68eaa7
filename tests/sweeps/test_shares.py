"""Several runs at a time: shares of cores and GPUs, and a sweep on them."""

import importlib.util
import os
import pathlib
import signal
import threading
import time

import pytest

from cramjax.errors import UserError
from cramjax.sweeps import grid, shares, sweep
from tests.sweeps.test_sweep import LRS, RECIPE, leave_run

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system gives no cores to processes"
)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """Six cores and no GPU; returns the folder of devices."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 4, 5, 6, 7}, raising=False)
    monkeypatch.setattr(shares, "_DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # with a plugin for GPUs
    return tmp_path


def test_cores_are_divided_into_equal_shares():
    assert [share.cores for share in shares.divide(2)] == [(2, 3, 4), (5, 6, 7)]
    assert [share.cores for share in shares.divide(4)] == [(2,), (3,), (4,), (5,)]
    assert shares.divide(1) == [shares.WHOLE]
    assert shares.divide(2)[0].command(["python", "-m", "x"]) == ["python", "-m", "x"]


def test_gpus_are_divided_and_each_run_sees_its_own(monkeypatch, machine):
    for number in (0, 1, 2, 10):
        (machine / f"nvidia{number}").touch()
    (machine / "nvidiactl").touch()
    first, second = shares.divide(2)
    assert (first.gpus, second.gpus) == (("0", "1"), ("2", "10"))
    assert second.command(["python"]) == ["env", "CUDA_VISIBLE_DEVICES=2,10", "python"]
    assert (first.cores, second.cores) == ((2, 3, 4), (5, 6, 7))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    assert [share.gpus for share in shares.divide(2)] == [("GPU-a",), ("GPU-b",)]
    with pytest.raises(UserError, match="--jobs 3: GPUs of this machine: 2; give 2 at most"):
        shares.divide(3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [share.gpus for share in shares.divide(3)] == [None] * 3
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert [share.gpus for share in shares.divide(3)] == [None] * 3


def test_more_jobs_than_cores_are_the_users_mistake():
    with pytest.raises(UserError, match="--jobs 7: cores of this machine: 6; give 6 at most"):
        shares.divide(7)


@pytest.fixture(scope="module")
def points():
    return grid.points_of(f"{RECIPE}:smoke", ["budget.steps=4"], LRS)


@needs_affinity
def test_points_train_at_the_same_time_each_on_its_share(monkeypatch, points, tmp_path):
    monkeypatch.undo()  # the real cores
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    both, seen = threading.Barrier(2, timeout=20), []

    def launch(command, log, stop):
        seen.append((threading.get_ident(), tuple(sorted(os.sched_getaffinity(0)))))
        if len(seen) <= 2:
            both.wait()  # passes only if two runs are going on
        workdir = pathlib.Path(command[command.index("--workdir") + 1])
        leave_run(workdir, eval_loss=1.0)
        return 0

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert sweep.run_sweep(points, tmp_path / "out", n_jobs=2, launch=launch) == 0
    assert len(seen) == 3
    half = len(cores) // 2
    assert {of for _, of in seen} == {tuple(cores[:half]), tuple(cores[half : 2 * half])}
    # The thread that waits keeps all cores.
    assert sorted(os.sched_getaffinity(0)) == cores
    text = (tmp_path / "out" / "sweep.csv").read_text()
    assert text.count("finished") == 3


@needs_affinity
def test_a_signal_reaches_every_run_and_no_other_starts(monkeypatch, points, tmp_path):
    monkeypatch.undo()
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    started = []

    def launch(command, log, stop):
        started.append(command)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + 20
        while not stop.requested and time.monotonic() < end:
            time.sleep(0.01)
        return stop.exit_code

    code = sweep.run_sweep(points, tmp_path / "out", n_jobs=2, launch=launch)
    assert code == 128 + signal.SIGTERM and len(started) == 2
    assert (tmp_path / "out" / "sweep.csv").read_text().count("stopped") == 2


def test_a_mistake_in_a_thread_is_not_lost(monkeypatch, points, tmp_path):
    monkeypatch.setattr(shares.Share, "take", lambda share: None)

    def launch(command, log, stop):
        raise OSError("no process")

    with pytest.raises(OSError, match="no process"):
        sweep.run_sweep(points, tmp_path / "out", n_jobs=2, launch=launch)

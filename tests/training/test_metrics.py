"""The outputs for numbers: lines, the cut at a restart, TensorBoard and services that fail."""

import errno
import io
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import types

import pytest

from cramjax.training import metrics
from cramjax.training.metrics import MetricsWriter


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 2.5, "tokens": 4096})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5, "tokens": 4096}]
    writer.close()


def test_numbers_that_are_not_finite_or_not_known_stay_json(tmp_path, caplog):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    writer.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "mfu": None, "lr": 0.5})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None, "mfu": None, "lr": 0.5}]
    assert not caplog.records  # TensorBoard is still on


def test_a_restart_cuts_the_steps_it_will_repeat_and_a_torn_line(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in range(1, 6):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    writer = MetricsWriter(tmp_path, resumed_step=3)
    writer.write(4, {"loss": 40.0})
    writer.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_a_run_from_the_start_begins_an_empty_file(tmp_path):
    for value in (1.0, 2.0):
        writer = MetricsWriter(tmp_path)
        writer.write(1, {"loss": value})
        writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.fixture
def full_disk(monkeypatch):
    """While it has an entry, a write to a line file takes that many bytes and then fails."""
    room = []
    whole = io.FileIO.write

    class Disk(io.FileIO):
        def write(self, data):
            if not room:
                return whole(self, data)
            if room[0] == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            n_bytes = room[0]
            room[0] = 0
            return whole(self, data[:n_bytes])

    monkeypatch.setattr(metrics.io, "FileIO", Disk)
    return room


def test_lines_that_a_full_disk_does_not_take_come_later_in_order(tmp_path, full_disk, caplog):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    for step, room in ((2, 9), (3, 0), (4, 3)):
        full_disk[:] = [room]
        writer.write(step, {"loss": float(step)})
        assert [line["step"] for line in lines(tmp_path)] == [1]  # and no half of a line
    full_disk.clear()
    writer.write(5, {"loss": 5.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert len(caplog.records) == 1 and "No space left on device" in caplog.text


def test_a_half_line_that_cannot_be_taken_back_is_cut_off_later(tmp_path, full_disk, monkeypatch):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    full_disk[:] = [9]

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(metrics.io.FileIO, "truncate", fail)
        writer.write(2, {"loss": 2.0})
    assert not (tmp_path / "metrics.jsonl").read_text().endswith("\n")
    full_disk.clear()
    writer.write(3, {"loss": 3.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_lines_that_never_can_be_written_are_counted(tmp_path, full_disk, caplog):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2):
        full_disk[:] = [0]
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert not lines(tmp_path) and "the last 2 lines are lost" in caplog.text


def test_a_folder_that_is_deleted_and_made_again_has_all_lines(tmp_path, caplog):
    workdir = tmp_path / "run"
    workdir.mkdir()
    writer = MetricsWriter(workdir)
    for step in (1, 2, 3, 4):
        if step == 2:
            shutil.rmtree(workdir)
        if step == 4:
            workdir.mkdir()
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    assert len(caplog.records) == 1 and "No such file or directory" in caplog.text


def test_a_file_that_somebody_has_put_there_gets_the_lines_that_follow(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss": 1.0})
    (tmp_path / "new").write_text('{"step": 0}\n')
    os.replace(tmp_path / "new", tmp_path / "metrics.jsonl")
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 2]


def test_reading_skips_what_is_not_a_line(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"loss": 3}\n{"step": 2}\n')
    assert metrics.read(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]
    assert metrics.read(tmp_path / "absent.jsonl") == []


def test_tensorboard_reads_the_same_numbers_and_forgets_what_a_restart_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = MetricsWriter(tmp_path, resumed_step=resumed_step, tensorboard=True)
        for step in steps:
            writer.write(step, {"loss": step + resumed_step / 10})
        writer.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, pytest.approx(3.2)), (4, pytest.approx(4.2))]


def test_no_tensorflow_for_tensorboard(tmp_path):
    code = f"""
import sys
from cramjax.training.metrics import MetricsWriter
writer = MetricsWriter({str(tmp_path)!r}, tensorboard=True)
writer.write(1, {{"loss": 1.0}})
writer.close()
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])


class FakeRun:
    def __init__(self, fails_at):
        self.fails_at, self.logged = fails_at, []

    def log(self, values, step):
        if self.fails_at == "log":
            raise ConnectionError("no route")
        self.logged.append((step, values))

    def finish(self):
        if self.fails_at == "finish":
            raise ConnectionError("no route")
        if self.fails_at == "never":
            threading.Event().wait()


@pytest.mark.parametrize("service", ["wandb", "trackio"])
@pytest.mark.parametrize("fails_at", ["import", "init", "log", "finish", "never"])
def test_a_failing_service_is_one_warning_and_the_run_goes_on(
    tmp_path, monkeypatch, caplog, fails_at, service
):
    def init(**kwargs):
        if fails_at == "init":
            raise RuntimeError("no API key")
        return FakeRun(fails_at)

    module = None if fails_at == "import" else types.SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, service, module)
    monkeypatch.setattr(metrics, "UPLOAD_S", 0.1)
    with caplog.at_level(logging.WARNING, "cramjax"):
        writer = MetricsWriter(tmp_path, **{f"{service}_project": "mine"})
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0})
        writer.close()
    assert len(caplog.records) == 1 and "off for the rest of this run" in caplog.text
    assert len(lines(tmp_path)) == 3


@pytest.mark.parametrize("service, key", [("wandb", "id"), ("trackio", "name")])
def test_a_working_service_gets_every_number_and_the_same_run_after_a_restart(
    tmp_path, monkeypatch, service, key
):
    run, ids = FakeRun(None), []
    module = types.SimpleNamespace(init=lambda **kwargs: ids.append(kwargs[key]) or run)
    monkeypatch.setitem(sys.modules, service, module)
    for _ in range(2):
        writer = MetricsWriter(tmp_path, config={"seed": 1}, **{f"{service}_project": "mine"})
        writer.write(1, {"loss": 1.0})
        writer.close()
    assert run.logged == [(1, {"loss": 1.0})] * 2 and ids[0] == ids[1]

"""The folder of a run: its lock, over real processes, and files that are whole or absent."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from cramjax import files
from cramjax.errors import UserError
from cramjax.training import workdir
from cramjax.training.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from cramjax.training.workdir import Workdir
held = Workdir(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/run."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.communicate()


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(UserError, match=rf"another run is using it \(process {holder.pid} on "):
        Workdir(tmp_path / "run")


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Workdir(tmp_path / "run") as taken:
        assert json.loads((taken.path / "lock").read_text())["pid"] == os.getpid()


def test_a_closed_folder_is_free_again_also_in_the_same_process(tmp_path):
    with Workdir(tmp_path / "a" / "b"):
        with pytest.raises(UserError, match="another run"):
            Workdir(tmp_path / "a" / "b")
    Workdir(tmp_path / "a" / "b").close()


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run: cannot be written .*give another folder"):
        Workdir(tmp_path / "file" / "run")
    with pytest.raises(UserError, match="cannot be written"):
        files.write_json(tmp_path / "absent" / "config.json", {})


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"steps": 3, "name": "é"})
    with pytest.raises(TypeError):
        files.write_json(path, {"steps": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"steps": 3, "name": "é"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_the_environment_says_what_ran_and_is_json():
    found = json.loads(json.dumps(workdir.environment(["cpu"])))
    assert found["devices"] == ["cpu"] and found["packages"]["jax"] and found["command"]
    assert {"python", "host", "git", "started", "flags"} <= found.keys()


def test_the_environment_keeps_no_secrets(monkeypatch):
    monkeypatch.setenv("JAX_SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("XLA_API_KEY", "hunter2")
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    found = workdir.environment(["cpu"])
    assert "hunter2" not in json.dumps(found) and found["flags"]["JAX_LOG_COMPILES"] == "1"
    assert found["flags"]["JAX_SECRET_TOKEN"] == found["flags"]["XLA_API_KEY"] == "(hidden)"


def test_a_folder_that_was_deleted_is_made_and_locked_again(tmp_path, caplog):
    with Workdir(tmp_path / "run") as held:
        assert not held.restore()
        shutil.rmtree(tmp_path / "run")
        assert held.restore() and "was deleted" in caplog.text
        with pytest.raises(UserError, match="another run"):
            Workdir(tmp_path / "run")
        assert not held.restore()


def test_a_deleted_folder_that_another_run_has_taken_is_left_to_it(tmp_path):
    with Workdir(tmp_path / "run") as first:
        shutil.rmtree(tmp_path / "run")
        with Workdir(tmp_path / "run"), pytest.raises(UserError, match="another run"):
            first.restore()

"""Flags that several commands share."""

import errno
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from cramjax.config import cli


@pytest.mark.parametrize(
    ("module", "flag", "least"),
    [
        ("cramjax.main", "--show_batch", 1),
        ("tools.bench", "--steps", 1),
        ("tools.compress", "--seeds", 1),
        ("tools.compress", "--epochs", 0),
        ("tools.compress", "--qat_epochs", 0),
        ("tools.finetune", "--seeds", 1),
        ("tools.finetune", "--together", 1),
        ("tools.plan", "--kernels", 1),
        ("tools.probe", "--limit", 1),
    ],
)
@pytest.mark.parametrize("below", [True, False])
def test_a_number_that_is_too_small_or_none_is_a_usage_error(module, flag, least, below, capsys):
    text = str(least - 1) if below else "many"
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([f"{flag}={text}"])

    assert ended.value.code == 2
    mistake = f"must be at least {least}" if below else "must be a whole number"
    assert f"argument {flag}: {text}: {mistake}" in capsys.readouterr().err


def test_a_path_of_a_flag_may_begin_with_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.path("~/run") == pathlib.Path("/home/me/run")
    assert cli.path("runs/~x") == pathlib.Path("runs/~x") and cli.in_home("tfds") == "tfds"


LAST_MOMENTS = """
import argparse, atexit, os, signal, sys, threading, time
from cramjax.config.cli import make_parser, run_command
def command(args):
    {does}
    print("done")
{before}
sys.exit(run_command(command, None, make_parser("test", "A command.", "")))
"""


@pytest.mark.parametrize(
    ("does", "before"),
    [
        # As Orbax leaves them after a failed save.
        ("threading.Thread(target=time.sleep, args=(600,)).start()", ""),
        # Functions of atexit run last first: here the interpreter is about to end.
        ("pass", "atexit.register(os.kill, os.getpid(), signal.SIGUSR1)"),
    ],
    ids=["a thread that waits", "a signal"],
)
def test_what_comes_after_a_command_is_done_changes_nothing(does, before):
    script = LAST_MOMENTS.format(does=does, before=before)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_disk_that_fails_is_one_sentence(code, capsys):
    def command(_args):
        raise OSError(code, os.strerror(code), "runs/mine/predictions/.rte.tsv")

    assert cli.run_command(command, [], cli.make_parser("test", "A command.", "")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: runs/mine/predictions/.rte.tsv: {os.strerror(code)}; ")
    assert len(said.splitlines()) == 1
    with pytest.raises(OSError, match="rte"):
        cli.run_command(command, ["--debug"], cli.make_parser("test", "A command.", ""))

"""A whole run whose terminal, pipe or log file fails under it: it ends with 0, and is saved."""

import os
import shlex
import signal
import subprocess

import pytest

from tests.e2e import test_main as cli


def check(workdir, code, said=""):
    assert code == 0, said
    assert (workdir / "summary.json").exists() and (workdir / "checkpoints" / "20").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection",
    ["2>&1 | head -3", "2>/dev/full", "2>&-", ">&- 2>&- <&-", ">/dev/full", "| head -c1"],
)
def test_a_run_outlives_its_streams(corpus, tmp_path, redirection):
    command = cli.command(corpus, tmp_path / "run", *cli.SMALL, "--config.budget.steps=20")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shlex.join(command)} {redirection}"],
        cwd=cli.ROOT,
        env=cli.environment(),
        capture_output=True,
        text=True,
    )
    check(tmp_path / "run", done.returncode, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_outlives_its_terminal(corpus, tmp_path):
    command = cli.command(corpus, tmp_path / "run", *cli.SMALL, "--config.budget.steps=20")
    master, slave = os.openpty()
    child = subprocess.Popen(
        command,
        cwd=cli.ROOT,
        env=cli.environment(TERM="xterm"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        # As nohup does.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(slave)
    said = b""
    while b"compiling" not in said:
        said += os.read(master, 4096)
    os.close(master)
    check(tmp_path / "run", child.wait(timeout=200))

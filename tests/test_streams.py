"""stdout and stderr that never end a command: closed, broken, full, and narrow in their letters."""

import contextlib
import io
import os
import subprocess
import sys

import pytest

from cramjax import streams
from tests.conftest import ROOT

TELL = """
import contextlib, logging, os, sys, warnings
from cramjax.config.cli import make_parser, run_command

def tell(args):
    # A file that is opened now must not be what C++ prints into.
    with open(sys.argv[0] + ".data", "wb") as data:
        with contextlib.suppress(OSError):
            os.write(2, b"printed by C++\\n")
        for number in range(3000):
            print("truth \\u2192 guess\\u2026", number)
            print(f"caf\\udce9 {number}", file=sys.stderr, flush=True)
        logging.getLogger("cramjax").warning("logged")
        warnings.warn("warned")
        sys.stdout.flush()
        data.write(b"done")

sys.argv = [os.environ["WHERE"]]
sys.exit(run_command(tell, None, make_parser("tell", "Tell.", "")))
"""


def told(tmp_path, redirection, **environment):
    """Returns (exit code, what reached this test, whether the command came to its end)."""
    program = f'{sys.executable} -c "$TELL" {redirection}'
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {program}"],
        cwd=ROOT,
        env=os.environ | environment | {"TELL": TELL, "WHERE": str(tmp_path / "told")},
        capture_output=True,
        timeout=100,
    )
    came_to_its_end = (tmp_path / "told.data").read_bytes() == b"done"
    return done.returncode, done.stdout + done.stderr, came_to_its_end


@pytest.mark.parametrize(
    "redirection",
    ["2>&1 | head -1", "2>/dev/full", "2>&-", ">&- 2>&- <&-", "| head -1", ">&-"],
)
def test_a_command_outlives_its_streams(tmp_path, redirection):
    code, said, came_to_its_end = told(tmp_path, redirection)
    assert code == 0 and came_to_its_end
    assert b"Traceback" not in said and b"Exception ignored" not in said


def test_a_result_that_stdout_cannot_take_is_a_failure_in_one_sentence(tmp_path):
    code, said, came_to_its_end = told(tmp_path, ">/dev/full")
    assert code == 1 and came_to_its_end
    assert said.splitlines()[-1] == (
        b"error: stdout: the result cannot be written (No space left on device)"
    )


def test_letters_that_an_encoding_lacks_are_written_as_codes(tmp_path):
    code, said, came_to_its_end = told(tmp_path, "", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert code == 0 and came_to_its_end
    assert rb"truth \u2192 guess\u2026 2999" in said and rb"caf\udce9 2999" in said


@contextlib.contextmanager
def stdout_to(descriptor):
    """`sys.stdout` is as Python itself opens it for a file descriptor."""
    before = sys.stdout
    sys.stdout = io.TextIOWrapper(open(descriptor, "wb", closefd=False), encoding="utf-8")
    try:
        yield
    finally:
        sys.stdout = before


def test_what_a_full_disk_loses_is_remembered_until_it_is_waived():
    full = os.open("/dev/full", os.O_WRONLY)
    with stdout_to(full):
        mine = sys.stdout
        with streams.unbroken(), streams.unbroken():
            assert streams.lost_output() is None
            print("a line")
            assert streams.lost_output() == "No space left on device"
            streams.waive_output()
            assert streams.lost_output() is None
        assert sys.stdout is mine
    os.close(full)


def test_a_disk_that_has_room_again_gets_the_lines_that_follow():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with stdout_to(writer), streams.unbroken():
        print("x" * (1 << 20))  # more than a pipe holds, and nobody reads
        assert streams.lost_output() == "Resource temporarily unavailable"
        while os.read(reader, 1 << 16)[-1:] != b"\n":
            print("here again", flush=True)
    os.close(reader)
    os.close(writer)


def test_a_closed_pipe_loses_nothing_that_anybody_wants():
    reader, writer = os.pipe()
    os.close(reader)
    with stdout_to(writer), streams.unbroken():
        print("a line")
        assert streams.lost_output() is None
    os.close(writer)


def test_streams_of_a_notebook_stay_as_they_are():
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), streams.unbroken():
        assert sys.stdout is stream

"""The output for a person: a live panel on a terminal, plain lines at intervals elsewhere."""

import fcntl
import io
import json
import math
import os
import re
import select
import struct
import subprocess
import sys
import termios

import pytest

from cramjax.console import (
    Meter,
    Pace,
    Progress,
    describe,
    duration,
    panel_lines,
    sparkline,
    time_left,
)


def test_plain_lines_come_at_intervals_and_evaluations_at_once():
    stream, now = io.StringIO(), [0.0]
    progress = Progress(stream=stream, time_source=lambda: now[0])
    progress.announce("compiling the train step…")
    for step in range(1, 26):
        now[0] += 1.0
        progress.update(step=step, fraction=step / 25, loss=9.0 - step / 10)
    progress.evaluated(25, 6.5, 0.123, 7.0)
    progress.close()
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "compiling the train step…"
    assert [line.split()[2] for line in lines[1:4]] == ["1", "11", "21"]
    assert (
        lines[4]
        == "step 25: held-out loss 6.500 (0.500 below the unigram baseline 7.000), accuracy 12.3%"
    )
    assert lines[5].startswith("100.0%  step 25  loss 6.500  held-out 6.500 (unigram 7.000)")
    assert len(lines) == 6


def test_a_terminal_gets_a_panel_that_is_redrawn_and_lines_that_stay():
    stream = io.StringIO()
    progress = Progress(stream=stream, is_terminal=True)
    progress.announce("compiling [the] step")
    progress.update(step=1, fraction=0.1, loss=9.0, tokens_per_s=25_100.0, mfu=0.41, eta_s=102.0)
    progress.evaluated(1, 7.5, 0.1, 7.0)
    progress.update(step=2, fraction=0.2)
    progress.close()
    text = stream.getvalue()
    assert "compiling [the] step" in text and "0.500 above the unigram baseline" in text
    assert "step 2" in text and "\x1b[" in text


NEWS = {
    "step": 1040,
    "fraction": 0.25,
    "loss": 4.5,
    "tokens_per_s": 53_100.0,
    "mfu": 0.22,
    "eta_s": 133.0,
    "next_eval_s": 61.0,
    "batch_size": 128,
    "lr": 1e-3,
    "memory_bytes": 3 * 2**30,
    "memory_limit": 12 * 2**30,
    "skipped": 0,
    "noise_scale": 12.0,
}


def test_the_panel_has_everything_that_is_known():
    lines = panel_lines(NEWS | {"eval_loss": 5.124, "unigram_loss": 6.88}, "█▁")
    assert lines == [
        "loss 4.500 █▁  held-out 5.124  unigram 6.880",
        "53.1k tokens/s  MFU 22%  memory 3.0 of 12.0 GiB",
        "step 1,040  next evaluation in 1:01  batch 128  lr 0.001",
    ]
    assert panel_lines({"skipped": 2, "memory_bytes": 2**30, "mfu": None}, "") == [
        "memory 1.0 GiB",
        "2 skipped",
    ]


def test_a_sparkline_falls_with_the_loss():
    assert sparkline([9, 7, 5, 3, 1]) == "█▆▅▃▁"
    assert sparkline([]) == "" and sparkline([math.nan]) == ""
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([1.0, math.nan, 2.0]) == "▁ █"
    assert len(sparkline(list(range(1000)), width=24)) <= 24


@pytest.mark.parametrize(
    "columns, rows, environment",
    [
        (120, 40, {}),
        (40, 40, {}),
        (12, 40, {"NO_COLOR": "1"}),
        (1, 1, {}),
        (80, 3, {}),
        (80, 40, {"TERM": "dumb"}),
        (80, 40, {"TERM": "linux", "NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}),
    ],
)
def test_a_real_terminal_of_any_size_is_served(columns, rows, environment, root):
    """A terminal that is resized on the way and closed before the end."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(NEWS)],
        cwd=root,
        env={key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        | {"TERM": "xterm"}
        | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=slave,
    )
    assert child.stdout.readline() == b"half\n"
    said = b""
    while select.select([master], [], [], 0)[0]:
        said += os.read(master, 4096)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 44, 0, 0))
    os.close(slave)
    os.close(master)
    child.communicate(b"go on\n", timeout=60)
    assert child.returncode == 0

    text = said.decode(errors="replace")
    colours = re.findall(r"\x1b\[[0-9;]*m", text)
    assert ("dumb" in environment.values()) == ("\x1b[" not in text)
    assert not any(re.search("3[0-7]|4[0-7]|[39]8;", code) for code in colours) or not environment
    if columns >= 80:
        assert "4.500" in text and "2:13 left" in text


DRIVER = """
import json, os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from cramjax import streams
from cramjax.console import Progress
with streams.unbroken():
    progress = Progress()
    progress.announce("compiling")
    progress.update(**json.loads(sys.argv[1]))
    progress.evaluated(1040, 5.124, 0.1, 6.88)
    os.write(1, b"half\\n")  # while the panel is there, print goes to the terminal
    sys.stdin.readline()
    for step in range(50):
        progress.update(step=step, loss=4.0 - step / 100)
    progress.close()
"""


def test_values_are_said_in_short():
    values = {"step": 12345, "loss": 4.2, "tokens_per_s": 25_123.0, "mfu": 0.414, "eta_s": 4000.0}
    assert describe(values) == "step 12,345  loss 4.200  25.1k tokens/s  1:06:40 left  MFU 41%"
    assert describe({"step": 1, "mfu": None, "eta_s": 62.0}) == "step 1  1:02 left"


def test_durations_have_hours_only_from_an_hour_on():
    assert duration(0) == "0:00"
    assert duration(59.6) == "1:00"
    assert duration(3599) == "59:59"
    assert duration(3600) == "1:00:00"
    assert time_left(62.0) == "1:02 left"


def test_the_pace_counts_from_where_the_work_started():
    now = [0.0]
    pace = Pace(100.0, now=lambda: now[0])
    now[0] = 10.0
    assert pace.left_s(100.0, 400.0) is None
    assert pace.rate(200.0) == pytest.approx(10.0)
    assert pace.left_s(200.0, 400.0) == pytest.approx(20.0)


def test_a_meter_prints_at_intervals_and_announcements_at_once():
    lines, now = [], [0.0]
    with Meter(lines.append, interval_s=5.0, has_bar=False, now=lambda: now[0]) as meter:
        meter.update("at the start", 0.0)
        meter.announce("a message")
        for second in range(1, 12):
            now[0] = float(second)
            meter.update(f"second {second}", second / 12)
    assert lines == ["a message", "second 5", "second 10"]


def test_a_meter_without_an_announce_is_silent(capfd):
    meter = Meter(None, interval_s=0.0, has_bar=True)
    meter.update("unseen", 0.5)
    meter.announce("unseen")
    meter.close()
    assert capfd.readouterr() == ("", "")

"""The output for a person: a live line on a terminal, plain lines at intervals elsewhere."""

import io

import pytest

from cramjax.console import Meter, Pace, Progress, describe, duration, time_left


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


def test_a_terminal_gets_one_line_that_is_redrawn_and_lines_that_stay():
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

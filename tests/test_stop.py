import contextlib
import signal
import subprocess
import sys
import threading

import pytest

from cramjax import stop
from cramjax.stop import StopSignal

CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGHUP": 129, "SIGUSR1": 138, "SIGUSR2": 140}
CODES["SIGXCPU"] = 152


def python(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


@pytest.mark.parametrize("name, code", CODES.items())
def test_the_first_signal_is_remembered(name, code):
    signum = signal.Signals[name]
    before = signal.getsignal(signum)
    with StopSignal() as stop_signal:
        assert not stop_signal.requested
        assert stop_signal.exit_code == 0 and stop_signal.reason is None
        signal.raise_signal(signum)
        # Schedulers send several, and SIGXCPU comes every second.
        for other in CODES:
            signal.raise_signal(signal.Signals[other])
            signal.raise_signal(signal.Signals[other])
        assert stop_signal.requested
        assert stop_signal.exit_code == code and stop_signal.reason == name.lower()
    assert signal.getsignal(signum) is before
    assert stop.exit_code(name.lower()) == code and set(stop.EXIT_CODES.values()) >= {code}


@pytest.mark.parametrize("name", CODES)
def test_an_ignored_signal_stays_ignored(name):
    before = signal.signal(signal.Signals[name], signal.SIG_IGN)
    try:
        with StopSignal() as stop_signal, stop_signal.at_once():
            signal.raise_signal(signal.Signals[name])
            assert not stop_signal.requested
        assert signal.getsignal(signal.Signals[name]) is signal.SIG_IGN
    finally:
        signal.signal(signal.Signals[name], before)


def test_what_the_calling_program_answers_is_left_to_it():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("usr1"))
    try:
        with StopSignal() as stop_signal:
            signal.raise_signal(signal.SIGUSR1)
            assert seen == ["usr1"] and not stop_signal.requested
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_before_there_is_a_state_it_ends_at_once():
    with pytest.raises(SystemExit) as ended, StopSignal() as stop_signal, stop_signal.at_once():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_a_signal_that_came_before_ends_what_has_nothing_to_save():
    with pytest.raises(SystemExit) as ended, StopSignal() as stop_signal:
        signal.raise_signal(signal.SIGINT)
        with stop_signal.at_once():
            raise AssertionError("it went on")
    assert ended.value.code == 130


def test_the_innermost_context_answers():
    assert not StopSignal.ends_at_once()
    with StopSignal() as outer, outer.at_once():
        assert StopSignal.ends_at_once()
        with StopSignal() as inner:
            assert not StopSignal.ends_at_once()
            signal.raise_signal(signal.SIGTERM)
            assert inner.requested and not outer.requested
            # What follows the saving is a new matter.
            with pytest.raises(SystemExit), inner.at_once():
                pass
            # All around it leave as well, whatever becomes of the exception.
            assert outer.reason == "sigterm"
        assert StopSignal.ends_at_once()
    assert not StopSignal.ends_at_once()


COMMAND = """
import argparse, os, signal, sys, time
from cramjax.config.cli import make_parser, run_command
from cramjax.stop import StopSignal
def command(args):
    {body}
    return 0
sys.exit(run_command(command, None, make_parser("test", "A command.", "")))
"""
SAVES = """
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.6)
        print("saving", flush=True)
        signal.raise_signal(getattr(signal, sys.argv.pop()))
        time.sleep(1)
        print("saved", flush=True)
        return stop.exit_code
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_same_signal_a_second_time_ends_a_command_without_saving(name):
    code = COMMAND.format(body=f"sys.argv.append({name!r})" + SAVES)
    done = python(code)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert ("saved" in done.stdout) is (name != "SIGINT")
    assert ("left at once by a second SIGINT" in done.stderr) is (name == "SIGINT")


@pytest.mark.parametrize("name", CODES)
def test_the_same_signal_a_second_time_ends_a_program_that_calls_cramjax(name, monkeypatch):
    signum = signal.Signals[name]
    # Signals within this time are one.
    with StopSignal():
        signal.raise_signal(signum)
        signal.raise_signal(signum)

    monkeypatch.setattr(stop, "SAME_S", 0.0)
    ends = pytest.raises((KeyboardInterrupt, stop.Stopped))
    if name == "SIGXCPU":
        ends = contextlib.nullcontext()  # the kernel sends it every second
    with ends, StopSignal() as stop_signal:
        signal.raise_signal(signum)
        assert stop_signal.reason == name.lower()
        signal.raise_signal(signum)


def test_a_signal_that_a_library_ignores_is_answered_all_the_same():
    # As libtpu does, without Python's knowledge.
    body = (
        "import ctypes; ctypes.CDLL(None).signal(signal.SIGHUP, ctypes.c_void_p(1))\n"
        "    time.sleep(1.5); os.kill(os.getpid(), signal.SIGHUP); time.sleep(30)"
    )
    done = python(COMMAND.format(body=body))
    assert done.returncode == 129 and done.stderr == "stopped by SIGHUP\n"


def test_a_command_stops_when_the_process_that_started_it_dies():
    body = 'print("begun", flush=True); time.sleep(30)'
    # The parent leaves the command behind; its output ends when the command has ended.
    parent = (
        "import os, subprocess, sys\n"
        "environment = os.environ | {'CRAMJAX_PARENT': str(os.getpid())}\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=environment,\n"
        "    stdout=subprocess.PIPE)\n"
        "print(child.stdout.readline()); os._exit(0)"
    )
    done = python(parent, COMMAND.format(body=body))
    assert "begun" in done.stdout
    assert done.stderr == "the command that started this one has ended\nstopped by SIGTERM\n"


def test_signals_do_not_reach_processes_that_are_held_back():
    script = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('alive')"
    with stop.held_back():
        done = python(script)
    assert done.stdout == "alive\n" and done.returncode == 0
    assert python(script).returncode != 0


def test_outside_the_main_thread_signals_belong_to_somebody_else():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopSignal() as stop_signal:
            seen.append((signal.getsignal(signal.SIGTERM), stop_signal.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]

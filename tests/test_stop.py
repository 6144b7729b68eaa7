import signal
import subprocess
import sys
import threading

import pytest

from cramjax.stop import StopSignal


@pytest.mark.parametrize(
    "signum, code, reason", [(signal.SIGTERM, 143, "sigterm"), (signal.SIGINT, 130, "sigint")]
)
def test_the_first_signal_is_remembered(signum, code, reason):
    before = signal.getsignal(signum)
    with StopSignal() as stop:
        assert not stop.requested and stop.exit_code == 0 and stop.reason is None
        signal.raise_signal(signum)
        assert stop.requested and stop.exit_code == code and stop.reason == reason
    assert signal.getsignal(signum) is before


def test_before_there_is_a_state_it_ends_at_once():
    with pytest.raises(SystemExit) as ended, StopSignal() as stop, stop.at_once():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_a_signal_that_came_before_ends_what_has_nothing_to_save():
    with pytest.raises(SystemExit) as ended, StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        with stop.at_once():
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
        assert StopSignal.ends_at_once()
    assert not StopSignal.ends_at_once()


def test_a_second_signal_ends_the_process():
    code = (
        "import signal, sys; from cramjax.stop import StopSignal\n"
        "with StopSignal() as stop:\n"
        "    signal.raise_signal(signal.SIGINT); print('first', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT); print('second', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT and done.stdout == "first\n"


def test_outside_the_main_thread_signals_belong_to_somebody_else():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopSignal() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]

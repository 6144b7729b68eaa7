"""The coordinator of one process; that of several is tested with real processes (e2e)."""

import signal
import types

import pytest

from cramjax.parallel.coordinator import OneProcess, SeveralProcesses, coordinate
from cramjax.stop import Stop


def test_a_process_without_others_follows_its_own_clock_and_signals():
    stop = Stop()
    coordinator = coordinate(stop)
    assert isinstance(coordinator, OneProcess)
    assert not coordinator.requested and coordinator.reason is None

    stop.signum = signal.SIGTERM
    assert coordinator.requested and coordinator.reason == "sigterm"
    assert coordinator.now() <= coordinator.now()


@pytest.mark.parametrize("kind", [OneProcess, SeveralProcesses])
def test_seconds_stand_still_in_a_pause(kind):
    house = types.SimpleNamespace(seconds=100.0)
    coordinator = kind(Stop(), now=lambda: house.seconds)

    def read():
        coordinator.advance()  # of several processes it is a step late
        coordinator.advance()
        return coordinator.now()

    started = read()
    house.seconds += 5
    with pytest.raises(RuntimeError), coordinator.paused():
        house.seconds += 1000
        assert read() - started == 5
        raise RuntimeError
    house.seconds += 2
    assert read() - started == 7


def test_the_clock_and_signals_of_several_processes_are_one_step_late():
    # A group of one process runs the same collective as a larger one.
    stop, seconds = Stop(), iter([100.0, 101.5, 103.0, 104.0])
    coordinator = SeveralProcesses(stop, now=lambda: next(seconds))
    coordinator.advance()
    assert coordinator.now() == 0.0

    stop.signum = signal.SIGINT
    coordinator.advance()
    assert coordinator.now() == 1.5 and not coordinator.requested
    coordinator.advance()
    assert coordinator.now() == 3.0 and coordinator.reason == "sigint"


def test_the_clock_of_several_processes_goes_on_for_months():
    seconds = iter([100.0, 100.0 + 60 * 86_400.25, 100.0 + 60 * 86_400.25])
    coordinator = SeveralProcesses(Stop(), now=lambda: next(seconds))
    coordinator.advance()
    coordinator.advance()
    assert coordinator.now() == 60 * 86_400.25

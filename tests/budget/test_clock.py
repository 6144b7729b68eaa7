"""The clock: counts, fractions, endings, pauses and restarts, all on a hand-driven time source."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.budget.clock import Clock
from cramjax.errors import UserError


class Time:
    """A time source moved by hand."""

    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


def run(clock, time, durations, n_tokens=10, n_flops=5.0):
    """Drive `clock` until it is done; the fractions its steps ran at."""
    fractions = []
    clock.start()
    for duration in durations:
        if clock.done():
            break
        fractions.append(clock.plan_step(n_tokens, n_flops))
        time.now += duration
        clock.advance(n_tokens, n_flops, 2)
    return fractions


def test_no_limit_is_refused():
    with pytest.raises(UserError, match="budget"):
        Clock()
    with pytest.raises(UserError, match="budget.tokens=0"):
        Clock(tokens=0)


@pytest.mark.parametrize(
    ("limits", "n_steps", "which"),
    [
        ({"steps": 4}, 4, "steps"),
        ({"tokens": 35}, 4, "tokens"),
        ({"flops": 20.0}, 4, "flops"),
        ({"steps": 9, "tokens": 30, "flops": 1e9}, 3, "tokens"),
    ],
)
def test_counted_limits_end_on_the_exact_step_at_fraction_one(limits, n_steps, which):
    time = Time()
    clock = Clock(**limits, time_source=time)
    fractions = run(clock, time, [1.0] * 99)
    assert len(fractions) == n_steps == clock.n_steps
    assert fractions[-1] == 1.0 and all(fraction < 1.0 for fraction in fractions[:-1])
    assert (
        clock.done()
        and clock.which() == which
        and clock.fraction() == 1.0
        and clock.remaining_s() == 0.0
    )
    assert (clock.n_tokens, clock.n_flops, clock.n_rows) == (
        10 * n_steps,
        5.0 * n_steps,
        2 * n_steps,
    )


@given(st.lists(st.floats(0.0, 1e4), min_size=7, max_size=7))
def test_a_step_budget_does_not_depend_on_time(durations):
    time = Time()
    assert run(Clock(steps=7, time_source=time), time, durations) == [n / 7 for n in range(1, 8)]


@given(st.floats(0.01, 7.0), st.floats(0.0, 30.0), st.integers(0, 2**32 - 1))
def test_a_time_budget_ends_within_a_step_of_it_at_fraction_one(step_s, compile_s, seed):
    import random

    noise = random.Random(seed)
    durations = [compile_s + step_s] + [step_s * noise.uniform(0.8, 1.2) for _ in range(20000)]
    time = Time()
    clock = Clock(hours=180 / 3600, time_source=time)
    fractions = run(clock, time, durations)
    assert clock.done() and clock.which() == "hours"
    # Half a step of rounding, and the error of the estimate for the last two steps: at worst the
    # longest step.
    assert abs(clock.elapsed_s - 180) <= 1.2 * step_s
    assert fractions[-1] == 1.0 and max(fractions[:-1]) < 1.0
    assert fractions == sorted(fractions)


def test_a_stall_past_the_limit_still_ends_with_one_step_at_fraction_one():
    time = Time()
    clock = Clock(hours=100 / 3600, time_source=time)
    clock.start()
    for _ in range(5):
        assert clock.plan_step(10, 1.0) < 1.0
        time.now += 1.0
        clock.advance(10, 1.0)
    time.now += 500.0  # an evaluation that took too long
    assert not clock.done()
    assert clock.plan_step(10, 1.0) == 1.0
    clock.advance(10, 1.0)
    assert clock.done() and clock.fraction() == 1.0


def test_the_next_step_is_predicted_by_its_tokens_and_not_by_outliers():
    time = Time()
    clock = Clock(hours=1, time_source=time)
    clock.start()
    for duration in [
        60.0,
        1.0,
        1.0,
        30.0,
        1.0,
        1.0,
    ]:  # compilation first, an evaluation in the middle
        time.now += duration
        clock.advance(100, 1.0)
    assert clock.plan_step(400, 4.0) == pytest.approx((clock.elapsed_s + 4.0) / 3600)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=30))
def test_no_time_source_makes_the_clock_go_back(readings):
    time = Time()
    clock = Clock(hours=1, time_source=time)
    clock.start()
    seen = [0.0]
    for reading in readings:
        time.now = reading
        before = clock.fraction()
        clock.plan_step(1, 1.0)
        clock.advance(1, 1.0)
        seen.append(clock.elapsed_s)
        assert math.isfinite(clock.elapsed_s) and 0.0 <= before <= clock.fraction() <= 1.0
    assert seen == sorted(seen)


def test_a_jump_back_loses_nothing_that_was_counted_and_counting_goes_on():
    time = Time(1000.0)
    clock = Clock(hours=1, time_source=time)
    clock.start()
    for now, elapsed_s in [(1010.0, 10.0), (10.0, 10.0), (15.0, 15.0)]:
        time.now = now
        assert clock.elapsed_s == elapsed_s


def test_seconds_before_the_start_do_not_count():
    time = Time()
    clock = Clock(hours=1, time_source=time)
    time.now += 50
    assert clock.elapsed_s == 0.0
    clock.start()
    time.now += 3
    assert clock.elapsed_s == 3.0


@pytest.mark.parametrize("limits", [{"steps": 10}, {"hours": 10 / 3600}, {"tokens": 100}])
def test_a_restart_goes_on_where_it_stopped(limits):
    time = Time()
    whole = run(Clock(**limits, time_source=time), time, [1.0] * 99)
    first = Clock(**limits, time_source=time)
    head = run(first, time, [1.0] * 4)
    state = json.loads(json.dumps(first.state_dict()))
    time.now += 1e6  # the machine was off
    second = Clock(**limits, time_source=time)
    second.load_state_dict(state)
    tail = run(second, time, [1.0] * 99)
    assert second.elapsed_s == 10.0 and second.n_rows == 20
    if "hours" in limits:  # step durations are learned anew: the estimates may differ, the end not
        assert tail[-1] == whole[-1] == 1.0 and len(head + tail) == len(whole)
    else:
        assert head + tail == whole


def test_a_finished_run_stays_finished_unless_the_budget_grows():
    time = Time()
    clock = Clock(hours=9.7 / 3600, time_source=time)
    run(clock, time, [1.0] * 99)
    state = clock.state_dict()
    again = Clock(hours=9.7 / 3600)
    again.load_state_dict(state)
    assert again.done() and again.which() == "hours" and again.fraction() == 1.0
    longer = Clock(hours=20 / 3600)
    longer.load_state_dict(state)
    assert not longer.done() and longer.fraction() == pytest.approx(0.5)
    shorter = Clock(steps=3)
    shorter.load_state_dict(state)
    assert shorter.done() and shorter.which() == "steps"


def test_the_remaining_time_follows_the_nearest_limit():
    time = Time()
    clock = Clock(hours=1, steps=101, time_source=time)
    assert Clock(steps=3).remaining_s() is None
    clock.start()
    assert clock.remaining_s() == 3600
    for _ in range(11):
        time.now += 2.0
        clock.advance(10, 1.0)
    assert clock.remaining_s() == pytest.approx(90 * 2.0)

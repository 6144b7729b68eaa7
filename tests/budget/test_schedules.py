"""Learning rate shapes, batch ramp and early termination: boundaries, bounds and continuity."""

import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cramjax.budget import schedules
from cramjax.config import schema
from cramjax.errors import UserError

NAMES = schema.SCHEDULE["name"].choices
shares = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "arguments", "points"),
    [
        ("triangle2", {}, {0: 0.25, 0.5: 0.75, 0.75: 1.0, 0.875: 0.5, 1: 0.0}),
        ("one_cycle", {}, {0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1: 0.0}),
        ("linear", {}, {0: 1.0, 0.5: 0.5, 1: 0.0}),
        ("linear", {"warmup": 0.2, "final": 0.1}, {0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.55, 1: 0.1}),
        ("cosine", {"warmup": 0.5}, {0: 0.0, 0.5: 1.0, 0.75: 0.5, 1: 0.0}),
        ("cosine", {"final": 0.2}, {0: 1.0, 0.5: 0.6, 1: 0.2}),
        ("constant", {}, {0: 1.0, 1: 1.0}),
        (
            "constant",
            {"warmup": 0.1, "cooldown": 0.2},
            {0.05: 0.5, 0.1: 1.0, 0.8: 1.0, 0.9: 0.5, 1: 0.0},
        ),
        ("inverse_sqrt", {"warmup": 0.04}, {0.02: 0.5, 0.04: 1.0, 0.16: 0.5, 1: 0.2}),
        ("inverse_sqrt", {}, {0: 1.0, 0.01: 1.0, 1: 0.1}),
        (
            "inverse_sqrt",
            {"warmup": 0.25, "cooldown": 0.5},
            {0.5: 0.5**0.5, 0.75: 0.5**0.5 / 2, 1: 0.0},
        ),
        ("inverse_sqrt", {"plateau": 0.25}, {0.2: 1.0, 0.25: 1.0, 1: 0.5}),
        ("inverse_sqrt", {"plateau": 0.5, "cooldown": 0.1}, {0.9: 0.5**0.5 / 0.9**0.5, 1: 0.0}),
        ("linear", {"warmup": 1.0}, {0.5: 0.5, 1: 1.0}),
        # nanoT5: up from half the peak.
        ("cosine", {"warmup": 0.2, "warmup_from": 0.5}, {0: 0.5, 0.1: 0.75, 0.2: 1.0, 1: 0.0}),
    ],
)
def test_points_of_a_shape(name, arguments, points):
    for fraction, expected in points.items():
        assert schedules.multiplier(name, fraction, **arguments) == pytest.approx(expected), (
            fraction
        )


@pytest.mark.parametrize("name", NAMES)
@given(
    fraction=st.floats(-1.0, 3.0),
    warmup=shares,
    warmup_from=shares,
    plateau=shares,
    cooldown=shares,
    final=shares,
)
def test_every_shape_stays_between_zero_and_the_peak(name, fraction, **arguments):
    assert 0.0 <= schedules.multiplier(name, fraction, **arguments) <= 1.0


@pytest.mark.parametrize("name", NAMES)
@given(fraction=shares, warmup=st.floats(0.05, 1.0), cooldown=st.floats(0.05, 1.0), final=shares)
def test_every_shape_is_continuous(name, fraction, warmup, cooldown, final):
    # A decay squeezed into what a long warm-up leaves is steep; keep it apart from a jump.
    warmup, step = min(warmup, 0.9), 1e-6
    at, after = (
        schedules.multiplier(name, f, warmup=warmup, cooldown=cooldown, final=final)
        for f in (fraction, fraction + step)
    )
    assert abs(after - at) <= 40 * step


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "inverse_sqrt"])
@given(a=shares, b=shares, warmup=st.floats(0.0, 0.9), final=st.floats(0.0, 0.1))
def test_warm_up_rises_and_the_rest_falls(name, a, b, warmup, final):
    low, high = sorted((a, b))
    values = [
        schedules.multiplier(name, f, warmup=warmup, cooldown=0.3, final=final) for f in (low, high)
    ]
    if high <= warmup:
        assert values[0] <= values[1]
    elif low >= warmup:
        assert values[0] >= values[1] - 1e-12


def schedule(**values):
    return types.SimpleNamespace(
        **{key: field.default for key, field in schema.SCHEDULE.items()} | values,
    )


def test_the_learning_rate_is_the_shape_times_the_peak():
    assert schedules.learning_rate(schedule(), 1e-3, 0.0, 1) == pytest.approx(2.5e-4)
    assert schedules.learning_rate(
        schedule(name="linear", warmup=0.06), 1e-3, 0.06, 6
    ) == pytest.approx(1e-3)
    assert schedules.learning_rate(schedule(), 1e-3, 1.0, 100) == 0.0


@pytest.mark.parametrize("n_steps", [40, 10_000, 80_000, 524_288])
def test_a_plateau_in_steps_is_the_schedule_of_t5(n_steps):
    t5 = schedule(name="inverse_sqrt", plateau=10_000)
    for step in (1, n_steps // 2, n_steps):
        expected = max(step, 10_000) ** -0.5
        assert schedules.learning_rate(t5, 1e-2, step / n_steps, step) == pytest.approx(expected)
    # Hours do not spend their share evenly: the rate is a function of the step all the same.
    assert schedules.learning_rate(t5, 1e-2, 0.3, 40_000) == pytest.approx(40_000**-0.5)
    assert schedules.learning_rate(t5, 1e-2, 0.0, 1) == pytest.approx(1e-2)


@given(step=st.integers(1, 1000), plateau=st.integers(1, 1000), cooldown=shares)
def test_a_plateau_in_steps_is_its_share_of_a_budget_in_steps(step, plateau, cooldown):
    values = [
        schedules.learning_rate(
            schedule(name="inverse_sqrt", plateau=value, cooldown=cooldown), 1.0, step / 1001, step
        )
        for value in (plateau, plateau / 1001)
    ]
    assert values[0] == pytest.approx(values[1])


def test_an_unknown_shape_is_refused():
    with pytest.raises(UserError, match="schedule.name='triangle'"):
        schedules.multiplier("triangle", 0.5)


def ramp(share, start=None):
    return schedule(batch_ramp=share, ramp_start=start)


def test_the_batch_ramp_of_cramming():
    counts = [
        schedules.n_microbatches(ramp(0.6), f, 8192, 128)
        for f in (0.0, 0.009, 0.01, 0.3, 0.599, 0.6, 1.0)
    ]
    assert counts == [1, 1, 2, 33, 64, 64, 64]
    assert schedules.n_microbatches(ramp(0.0), 0.0, 8192, 128) == 64
    assert schedules.n_microbatches(ramp(0.6), 0.5, 128, 128) == 1
    with pytest.raises(UserError, match="microbatch_size=100"):
        schedules.n_microbatches(ramp(0.6), 0.5, 128, 100)


def test_a_ramp_with_a_start_of_its_own_does_not_see_the_microbatch():
    for fraction, batch in {0.0: 512, 0.03: 512, 0.0376: 1024, 0.3: 4608, 0.6: 8192}.items():
        for microbatch in (32, 128, 256, 512):
            n = schedules.n_microbatches(ramp(0.6, 512), fraction, 8192, microbatch)
            assert n * microbatch == batch
    # Without a ramp, it has no start.
    assert schedules.n_microbatches(ramp(0.0, 512), 0.0, 64, 64) == 1
    for batch_size, microbatch in ((8192, 1024), (768, 256)):
        with pytest.raises(UserError, match="schedule.ramp_start=512: must divide"):
            schedules.n_microbatches(ramp(0.6, 512), 0.0, batch_size, microbatch)


@given(shares, shares, shares, st.integers(1, 100), st.integers(1, 9), st.integers(1, 300))
def test_the_batch_ramp_grows_within_bounds(a, b, ramp_share, n, per_stair, microbatch_size):
    grain = per_stair * microbatch_size
    low, high, last = (
        schedules.n_microbatches(ramp(ramp_share, grain), f, n * grain, microbatch_size)
        for f in (*sorted((a, b)), 1.0)
    )
    assert per_stair <= low <= high <= last == n * per_stair
    assert low % per_stair == 0


@pytest.mark.parametrize(
    ("fraction", "loss", "stops"),
    [
        (0.1, 9.0, False),
        (0.2, 9.0, True),
        (0.5, 6.0, False),
        (0.5, 6.01, True),
        (0.5, float("nan"), True),
        (0.1, float("nan"), True),
    ],
)
def test_early_termination(fraction, loss, stops):
    assert schedules.stops_early(schedule(stop_loss=6.0, stop_after=0.2), fraction, loss) is stops
    assert not schedules.stops_early(schedule(stop_loss=None, stop_after=0.2), fraction, loss)

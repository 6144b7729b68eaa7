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
        ("linear", {"warmup": 1.0}, {0.5: 0.5, 1: 1.0}),
    ],
)
def test_points_of_a_shape(name, arguments, points):
    for fraction, expected in points.items():
        assert schedules.multiplier(name, fraction, **arguments) == pytest.approx(expected), (
            fraction
        )


@pytest.mark.parametrize("name", NAMES)
@given(fraction=st.floats(-1.0, 3.0), warmup=shares, cooldown=shares, final=shares)
def test_every_shape_stays_between_zero_and_the_peak(name, fraction, warmup, cooldown, final):
    value = schedules.multiplier(name, fraction, warmup=warmup, cooldown=cooldown, final=final)
    assert 0.0 <= value <= 1.0


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
    assert schedules.learning_rate(schedule(), 1e-3, 0.0) == pytest.approx(2.5e-4)
    assert schedules.learning_rate(
        schedule(name="linear", warmup=0.06), 1e-3, 0.06
    ) == pytest.approx(1e-3)
    assert schedules.learning_rate(schedule(), 1e-3, 1.0) == 0.0


def test_an_unknown_shape_is_refused():
    with pytest.raises(UserError, match="schedule.name='triangle'"):
        schedules.multiplier("triangle", 0.5)


def test_the_batch_ramp_of_cramming():
    ramp = [
        schedules.n_microbatches(f, 0.6, 8192, 128)
        for f in (0.0, 0.009, 0.01, 0.3, 0.599, 0.6, 1.0)
    ]
    assert ramp == [1, 1, 2, 33, 64, 64, 64]
    assert schedules.n_microbatches(0.0, 0.0, 8192, 128) == 64
    assert schedules.n_microbatches(0.5, 0.6, 128, 128) == 1
    with pytest.raises(UserError, match="microbatch_size=100"):
        schedules.n_microbatches(0.5, 0.6, 128, 100)


@given(shares, shares, shares, st.integers(1, 100), st.integers(1, 300))
def test_the_batch_ramp_grows_within_bounds(a, b, ramp_share, n, microbatch_size):
    low, high = (
        schedules.n_microbatches(f, ramp_share, n * microbatch_size, microbatch_size)
        for f in sorted((a, b))
    )
    assert 1 <= low <= high <= n
    assert schedules.n_microbatches(1.0, ramp_share, n * microbatch_size, microbatch_size) == n


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

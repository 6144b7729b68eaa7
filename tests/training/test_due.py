"""When to evaluate and when to save, at the boundaries."""

import pytest

from cramjax.training.due import EvalDue, SaveDue


def test_an_evaluation_is_due_once_at_each_multiple():
    due, at = EvalDue(every=0.25), []
    for step in range(1, 21):
        fraction = step / 20
        if due.is_due(fraction):
            at.append(step)
            due = due.after(fraction)
    assert at == [5, 10, 15, 20]


def test_rounding_does_not_move_an_evaluation():
    # 0.3 / 0.1 is 2.9999999999999996.
    assert EvalDue(every=0.1, n_passed=2).is_due(0.3)
    assert not EvalDue(every=0.1, n_passed=3).is_due(0.3)


def test_a_long_step_over_several_multiples_is_one_evaluation():
    due = EvalDue(every=0.1)
    assert due.is_due(0.35)
    due = due.after(0.35)
    assert not due.is_due(0.39)
    assert due.is_due(0.4)


@pytest.mark.parametrize("fraction", [0.0, 0.49, 0.5, 0.51])
def test_a_resumed_run_evaluates_at_the_next_multiple_only(fraction):
    due = EvalDue(every=0.5).after(fraction)
    assert not due.is_due(fraction)
    assert due.is_due(1.0)
    assert due.is_due(0.5) == (fraction < 0.5)


def test_without_a_share_no_evaluation_is_due():
    due = EvalDue(every=0.0)
    assert not due.is_due(1.0)
    assert due.after(0.5) == due


def test_a_save_is_due_after_its_minutes():
    due = SaveDue(every_minutes=2.0, every_steps=None)
    assert not due.is_due(119.9, 50)
    assert due.is_due(120.0, 50)
    due = due.after(125.0, 50)
    assert not due.is_due(244.9, 90)
    assert due.is_due(245.0, 90)


@pytest.mark.parametrize("every_steps", [None, 0])
def test_steps_count_only_if_they_are_given(every_steps):
    assert not SaveDue(every_minutes=1.0, every_steps=every_steps).is_due(59.0, 10**6)


def test_the_first_of_minutes_and_steps_makes_a_save_due():
    due = SaveDue(every_minutes=1.0, every_steps=10)
    assert not due.is_due(30.0, 9)
    assert due.is_due(30.0, 10)
    assert due.is_due(60.0, 1)


def test_no_step_is_due_twice_and_step_0_never():
    due = SaveDue(every_minutes=0.0, every_steps=1)
    assert not due.is_due(1000.0, 0)
    assert due.is_due(0.0, 1)
    assert not due.after(0.0, 1).is_due(1000.0, 1)


def test_after_a_restart_minutes_and_steps_count_from_the_checkpoint():
    due = SaveDue(every_minutes=1.0, every_steps=10).after(3600.0, 100)
    assert not due.is_due(3659.0, 109)
    assert due.is_due(3659.0, 110)
    assert due.is_due(3660.0, 101)


def test_points_beside_the_multiples_are_due_once():
    due, at = EvalDue(every=0.5, also_at=(0.125, 0.5)), []
    for step in range(1, 17):
        if due.is_due(step / 16):
            at.append(step)
            due = due.after(step / 16)
    assert at == [2, 8, 16]


def test_hours_are_passed_from_the_checkpoint_on_whatever_a_restart_took():
    due = SaveDue(
        every_minutes=1e9, every_steps=None, at_hours=(1.0, 2.0), saved_at_s=3700.0, saved_step=5,
        passed_s=3500.0,
    )  # fmt: skip
    assert not due.is_due(3700.0, 5) and due.is_due(3701.0, 6)
    due = due.after(3701.0, 6)
    assert not due.is_due(7199.0, 9) and due.is_due(7200.0, 9)
    assert due.hours_passed(7200.0) == [2.0]


@pytest.mark.parametrize(
    "fraction, expected", [(0.0, 0.125), (0.125, 0.5), (0.3, 0.5), (0.5, 1.0), (0.9, 1.0)]
)
def test_the_next_evaluation_is_the_next_point_or_the_end(fraction, expected):
    assert EvalDue(every=0.5, also_at=(0.125,)).following(fraction) == expected
    assert EvalDue(every=0.0).following(fraction) == 1.0

"""The training loop alone, with a step that computes nothing on the device."""

import types

import numpy as np
import pytest

from cramjax.budget.clock import Clock
from cramjax.config.resolve import get_config
from cramjax.errors import RunFailed
from cramjax.training.loop import StepSchedule, run_steps

SEQ_LEN = 8
MICROBATCH = 2


def make_config(*, batch_ramp=0.0):
    return types.SimpleNamespace(
        seed=0,
        batch_size=8,
        data=types.SimpleNamespace(seq_len=SEQ_LEN),
        optimizer=types.SimpleNamespace(lr=1.0, max_skipped=3),
        schedule=types.SimpleNamespace(
            name="linear",
            span_steps=None,
            warmup=0.0,
            warmup_from=0.0,
            plateau=0.01,
            cooldown=0.0,
            final=0.0,
            batch_ramp=batch_ramp,
            ramp_start=None,
        ),
    )


class FakeCoordinator:
    """Requests a stop after `stop_after` steps."""

    def __init__(self, stop_after=None):
        self._stop_after = stop_after
        self.n_steps = 0

    @property
    def requested(self):
        return self._stop_after is not None and self.n_steps >= self._stop_after

    @property
    def reason(self):
        return "sigterm" if self.requested else None

    def now(self):
        return 0.0

    def advance(self):
        self.n_steps += 1


class Loop:
    """Runs the loop with stand-ins for everything around it, and notes what happens in order.

    The state is the number of steps it has seen. `metrics(step)` gives entries of a step's metrics.
    """

    def __init__(self, metrics=lambda step: {}, pauses=True):
        self.events = []
        self._pauses = pauses
        self.records = []
        self._metrics = metrics

    def request(self, n_units):
        self.events.append(("request", n_units))

    def get(self):
        self.events.append(("get",))
        return "batch", 0.5

    def are_due(self):
        return self._pauses

    def before_step(self, state):
        self.events.append(("before", state))

    def record(self, step):
        self.events.append(("record", step.step))
        self.records.append(step)

    def step(self, state, batch, seed, lr, n_micro):
        assert batch == "batch" and seed.dtype == np.uint32
        assert lr.dtype == np.float32 and n_micro.dtype == np.int32
        self.events.append(("step", int(n_micro)))
        metrics = {"loss": 4.0, "skipped_in_row": 0} | self._metrics(state + 1)
        return state + 1, {name: np.float32(value) for name, value in metrics.items()}

    def run(self, steps=3, *, coordinator=None, since=0.0, until=1.0, rewarm=0.0, **settings):
        self.clock = Clock(steps=steps)
        self.clock.start()
        schedule = StepSchedule(
            config=make_config(**settings),
            microbatch_size=MICROBATCH,
            flops_per_sequence=10.0,
            since=since,
            until=until,
            rewarm=rewarm,
        )
        return run_steps(
            self.step,
            0,
            self,
            schedule=schedule,
            clock=self.clock,
            coordinator=coordinator or FakeCoordinator(),
            pauses=self,
            record=self.record,
        )


def test_a_round_is_batch_step_and_the_record_of_the_step_before():
    loop = Loop(pauses=False)
    outcome = loop.run(steps=3)
    assert loop.events == [
        ("request", 4),
        ("get",), ("request", 4), ("step", 4),
        ("get",), ("request", 4), ("step", 4), ("record", 1),
        ("get",), ("request", 4), ("step", 4), ("record", 2),
        ("record", 3),
    ]  # fmt: skip
    assert outcome.state == 3
    assert outcome.stop_reason == "steps" and outcome.failure is None
    assert [step.data_wait_s for step in loop.records] == [0.5, 0.5, 0.5]


def test_a_pause_comes_after_the_record_of_all_steps_before():
    # Else a checkpoint would not know its own step's loss.
    loop = Loop()
    loop.run(steps=2)
    assert loop.events == [
        ("request", 4),
        ("before", 0), ("get",), ("request", 4), ("step", 4),
        ("record", 1), ("before", 1), ("get",), ("request", 4), ("step", 4),
        ("record", 2),
    ]  # fmt: skip


def test_the_clock_counts_rows_tokens_and_flops_of_each_step():
    loop = Loop()
    loop.run(steps=3)
    assert loop.clock.n_steps == 3
    assert loop.clock.n_rows == 3 * 8
    assert loop.clock.n_tokens == 3 * 8 * SEQ_LEN
    assert loop.clock.n_flops == 3 * 8 * 10.0


def test_learning_rates_follow_the_share_at_the_end_of_each_step():
    loop = Loop()
    loop.run(steps=4)
    assert [step.fraction for step in loop.records] == [0.25, 0.5, 0.75, 1.0]
    assert [step.lr for step in loop.records] == [0.75, 0.5, 0.25, 0.0]
    assert [step.metrics["loss"] for step in loop.records] == [4.0] * 4


def test_a_schedule_over_steps_of_its_own_does_not_follow_the_budget():
    """Cramming's control: 8 million microbatches of 64, 80,000 of warm-up, in batches of 512."""
    config = get_config("bert_original:cramming", "budget.hours=None", "budget.steps=100000")
    schedule = StepSchedule(config=config, microbatch_size=64, flops_per_sequence=1.0)
    rates = {step: schedule.learning_rate(step / 1e5, step) for step in (1, 5_000, 10_000, 100_000)}
    assert rates[1] == pytest.approx(1e-8) and rates[5_000] == pytest.approx(5e-5)
    assert rates[10_000] == pytest.approx(1e-4)
    assert rates[100_000] == pytest.approx(1e-4 * 900 / 990)
    assert schedule.learning_rate(1.0, 3_000_000) == 0.0
    # What is planned is what the step gets, and the strong control decays with the budget.
    strong = StepSchedule(
        config=get_config("bert_original"), microbatch_size=64, flops_per_sequence=1.0
    )
    assert strong.learning_rate(1.0, 100_000) == 0.0


def test_each_step_takes_the_microbatches_that_were_requested_for_it():
    loop = Loop()
    loop.run(steps=10, batch_ramp=1.0)
    requested = [event[1] for event in loop.events if event[0] == "request"]
    stepped = [event[1] for event in loop.events if event[0] == "step"]
    assert stepped == requested[:-1]
    assert stepped == sorted(stepped) and stepped[0] == 1 and stepped[-1] == 4
    assert [step.batch_size for step in loop.records] == [MICROBATCH * n for n in stepped]


def test_a_signal_stops_after_the_current_step_which_is_recorded():
    loop = Loop()
    outcome = loop.run(steps=10, coordinator=FakeCoordinator(stop_after=2))
    assert outcome.state == loop.clock.n_steps == 2
    assert outcome.stop_reason == "sigterm"
    assert [step.step for step in loop.records] == [1, 2]


def test_a_signal_before_the_first_step_changes_nothing():
    loop = Loop()
    outcome = loop.run(coordinator=FakeCoordinator(stop_after=0))
    assert outcome.state == 0 and outcome.stop_reason == "sigterm"
    assert loop.events == [("request", 4)]


def test_the_end_of_the_budget_is_the_reason_even_if_a_signal_comes_with_the_last_step():
    outcome = Loop().run(steps=3, coordinator=FakeCoordinator(stop_after=3))
    assert outcome.stop_reason == "steps"


def test_a_stage_ends_at_its_share_without_a_reason():
    loop = Loop()
    outcome = loop.run(steps=10, until=0.5)
    assert outcome.state == 5
    assert outcome.stop_reason is None
    assert [step.step for step in loop.records] == [1, 2, 3, 4, 5]


def test_after_a_growth_the_learning_rate_warms_up_again():
    loop = Loop()
    loop.run(steps=4, since=0.25, rewarm=0.5)
    # Twice the share since the growth, and never more than 1.
    assert [step.lr for step in loop.records] == [0.0, 0.5 * 0.5, 0.25 * 1.0, 0.0]


def test_gradients_that_stay_non_finite_end_the_loop_with_the_state_and_the_error():
    loop = Loop(metrics=lambda step: {"skipped_in_row": max(0, step - 1)}, pauses=False)
    outcome = loop.run(steps=20)
    assert isinstance(outcome.failure, RunFailed)
    assert "not finite for 3 steps in a row (up to step 4)" in str(outcome.failure)
    # Step 4 is read after step 5 is dispatched, and state and clock agree.
    assert outcome.state == loop.clock.n_steps == 5
    assert [step.step for step in loop.records] == [1, 2, 3, 4, 5]


def test_an_error_anywhere_in_a_round_leaves_state_clock_and_record_at_the_same_step():
    for name in ("get", "record", "before_step", "step"):
        loop = Loop()
        whole = getattr(loop, name)
        n_left = iter([True, True, False])

        def fails_once(*arguments, whole=whole, n_left=n_left):
            if not next(n_left, True):
                raise OSError("a disk that went away")
            return whole(*arguments)

        setattr(loop, name, fails_once)
        outcome = loop.run(steps=20)
        assert isinstance(outcome.failure, OSError) and outcome.stop_reason is None, name
        assert outcome.state == loop.clock.n_steps > 0, name
        if name != "record":
            assert loop.records[-1].step == outcome.state, name


def test_a_pause_that_gives_a_reason_ends_the_run_before_the_next_step():
    loop = Loop()
    loop.before_step = lambda state: "early_termination" if state == 4 else None
    outcome = loop.run(steps=20)
    assert outcome.stop_reason == "early_termination"
    assert outcome.state == loop.clock.n_steps == 4
    assert [step.step for step in loop.records] == [1, 2, 3, 4]


def test_the_loss_of_a_training_step_ends_nothing():
    loop = Loop(metrics=lambda step: {"loss": float("nan") if step == 3 else 99.0})
    assert loop.run(steps=5).stop_reason == "steps"

"""Evaluations and checkpoints between steps, with stand-ins for both."""

import contextlib
import types

import pytest

from cramjax.budget.clock import Clock
from cramjax.training.evaluate import EvalResult
from cramjax.training.milestones import Milestones
from cramjax.training.records import Spent


class Checkpoints:
    """Notes the steps that are saved."""

    def __init__(self, events):
        self._events = events
        self.save_failed = False
        self.sidecar = None

    def latest(self):
        saved = [step for name, step in self._events if name == "save"]
        return None if self.save_failed else max(saved, default=None)

    def save(self, step, state, sidecar, *, block):
        self._events.append(("save", step))
        self.sidecar = sidecar


class House:
    """A run, its stage and its recorder; time stands still unless a test moves it."""

    def __init__(self, *, every_fraction=0.5, every_minutes=60.0, every_steps=None):
        self.events = []
        self.now = 0.0
        self.clock = Clock(steps=10, time_source=lambda: self.now)
        self.clock.start()
        self.checkpoints = Checkpoints(self.events)
        config = types.SimpleNamespace(
            eval=types.SimpleNamespace(every_fraction=every_fraction),
            checkpoint=types.SimpleNamespace(every_minutes=every_minutes, every_steps=every_steps),
        )
        self.run = types.SimpleNamespace(
            config=config,
            clock=self.clock,
            spent=Spent(),
            checkpoints=self.checkpoints,
            identity=lambda session: {"model": session},
        )
        self.stage = types.SimpleNamespace(number=0, session="network", evaluator=self._evaluate)
        recorder = contextlib.nullcontext()
        recorder.evaluated = lambda result: self.events.append(("recorded", self.clock.n_steps))
        self.recorder = recorder

    def _evaluate(self, params):
        self.events.append(("eval", self.clock.n_steps))
        return EvalResult(loss=2.0, accuracy=0.5)

    def milestones(self):
        return Milestones(self.run, self.recorder)

    def train(self, milestones, n_steps, step_s=0.0):
        state = types.SimpleNamespace(params={})
        for _ in range(n_steps):
            milestones.before_step(self.stage, state)
            self.now += step_s
            self.clock.advance(1, 1.0)
        milestones.before_step(self.stage, state)


def test_an_evaluation_comes_before_the_save_of_the_same_step():
    house = House(every_steps=5)
    house.train(house.milestones(), 5)
    assert house.events == [("eval", 5), ("recorded", 5), ("save", 5)]


def test_the_steps_before_are_done_when_an_evaluation_or_a_save_begins():
    # Else their seconds count as the evaluation's, and the rate of the steps is too high.
    house = House(every_steps=1)
    state = types.SimpleNamespace(
        params={}, block_until_ready=lambda: house.events.append(("waited", house.clock.n_steps))
    )
    milestones = house.milestones()
    house.clock.advance(1, 1.0)
    milestones.before_step(house.stage, state)
    assert house.events == [("waited", 1), ("save", 1)]

    house.clock.advance(4, 4.0)
    house.events.clear()
    for _ in range(4):
        house.clock.advance(1, 1.0)
    milestones.before_step(house.stage, state)
    assert [name for name, _ in house.events] == ["waited", "eval", "recorded", "waited", "save"]


def test_saves_follow_the_minutes():
    house = House(every_fraction=0.0, every_minutes=1.0)
    house.train(house.milestones(), 7, step_s=20.0)
    assert house.events == [("save", 3), ("save", 6)]


def test_a_resumed_run_counts_from_its_checkpoint():
    house = House(every_steps=4)
    house.train(house.milestones(), 4)
    house.events.clear()
    house.train(house.milestones(), 0)
    assert house.events == []
    house.train(house.milestones(), 4)
    assert house.events == [("eval", 5), ("recorded", 5), ("save", 8)]


def test_a_step_is_saved_once_also_at_the_end():
    house = House(every_fraction=0.0, every_steps=3)
    milestones = house.milestones()
    house.train(milestones, 3)
    milestones.save(house.stage, None, block=True)
    assert house.events == [("save", 3)]


def test_step_0_is_not_saved():
    house = House()
    house.milestones().save(house.stage, None, block=True)
    assert house.events == []


def test_a_failed_save_is_made_up_for_before_the_next_step():
    house = House(every_fraction=0.0, every_steps=3)
    milestones = house.milestones()
    house.train(milestones, 3)
    house.checkpoints.save_failed = True
    house.train(milestones, 1)
    house.checkpoints.save_failed = False
    assert ("save", 4) in house.events


def test_a_checkpoint_holds_clock_spent_stage_and_identity():
    house = House(every_fraction=0.0, every_steps=2)
    house.stage.number = 1
    house.train(house.milestones(), 2)
    sidecar = house.checkpoints.sidecar
    assert sidecar["clock"]["steps"] == 2
    assert sidecar["spent"].keys() == {
        "compile_s", "eval_s", "save_s", "data_wait_s", "growth_s"
    }  # fmt: skip
    assert sidecar["stage"] == 1 and sidecar["model"] == "network"


def test_the_seconds_of_evaluations_and_saves_are_counted_by_cause(monkeypatch):
    house = House(every_steps=5)
    seconds = iter(range(100))
    monkeypatch.setattr("cramjax.training.records.time.monotonic", lambda: float(next(seconds)))
    house.train(house.milestones(), 5)
    assert house.run.spent.eval_s == pytest.approx(1.0)
    assert house.run.spent.save_s == pytest.approx(1.0)

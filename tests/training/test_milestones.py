"""Evaluations and checkpoints between steps, with stand-ins for both."""

import contextlib
import json
import types

import pytest

from cramjax.budget.clock import Clock
from cramjax.errors import RunFailed
from cramjax.parallel.coordinator import Stopwatch
from cramjax.training import finish, milestones
from cramjax.training.evaluate import EvalResult
from cramjax.training.milestones import Milestones
from cramjax.training.records import Spent


class Checkpoints:
    """Notes the steps that are saved."""

    def __init__(self, events):
        self._events = events
        self.save_failed = False
        self.sidecar = None
        self.hours = set()

    def latest(self):
        saved = [step for name, step in self._events if name == "save"]
        return None if self.save_failed else max(saved, default=None)

    def marked_hours(self, last_step):
        return self.hours

    def reload(self):
        self._events[:] = [("reload", None)]

    def wait(self):
        pass

    def save(self, step, state, sidecar, *, block):
        self._events.append(("save", step))
        self.sidecar = json.loads(json.dumps(sidecar))


class House:
    """A run, its stage and its recorder; time stands still unless a test moves it."""

    def __init__(
        self,
        *,
        every_fraction=0.5,
        every_minutes=60.0,
        every_steps=None,
        at_hours=None,
        stop_loss=None,
        stop_after=1.0,
        bleu_every=None,
    ):
        self.events = []
        self.loss = 2.0
        self.now = 0.0
        self.stopwatch = Stopwatch(lambda: self.now)
        self.clock = Clock(steps=10, time_source=self.stopwatch.now)
        self.clock.start()
        self.checkpoints = Checkpoints(self.events)

        config = types.SimpleNamespace(
            to_dict=lambda: {"seed": 0},
            eval=types.SimpleNamespace(
                every_fraction=every_fraction, bleu_every_fraction=bleu_every
            ),
            checkpoint=types.SimpleNamespace(
                every_minutes=every_minutes, every_steps=every_steps, at_hours=at_hours
            ),
            schedule=types.SimpleNamespace(stop_loss=stop_loss, stop_after=stop_after),
        )
        self.verification = types.SimpleNamespace(
            is_running=False, is_damaged=False, raise_damage=lambda: None
        )
        self.run = types.SimpleNamespace(
            config=config,
            folder=None,
            dataset=types.SimpleNamespace(verification=self.verification),
            clock=self.clock,
            spent=Spent(),
            checkpoints=self.checkpoints,
            identity=lambda session: {"model": session},
            dataset_note=lambda: {"directory": "/d", "fingerprint": "f"},
            progress=types.SimpleNamespace(announce=lambda line: self.events.append(line)),
            coordinator=types.SimpleNamespace(requested=False, paused=self.stopwatch.paused),
            scorer=None,
        )
        if bleu_every:
            self.run.scorer = types.SimpleNamespace(score=self._score)
        self.stage = types.SimpleNamespace(number=0, session="network", evaluator=self._evaluate)
        recorder = contextlib.nullcontext()
        recorder.evaluated = lambda result: self.events.append(("recorded", self.clock.n_steps))
        recorder.state_dict = lambda: {"recent": []}
        recorder.scored = lambda scores: self.events.append(("scored", self.clock.n_steps))
        recorder.scored_step = None
        recorder.is_sound = True
        self.recorder = recorder

    def _evaluate(self, params):
        self.events.append(("eval", self.clock.n_steps))
        return EvalResult(loss=self.loss, accuracy=0.5)

    def _score(self, session, params, is_stopped):
        self.now += 1000.0
        self.events.append(("write", self.clock.n_steps))
        return None if is_stopped() else {"bleu": 20.0}

    def milestones(self, sidecar=None):
        return Milestones(self.run, self.recorder, self.stage, sidecar)

    def train(self, milestones, n_steps, step_s=0.0):
        state = types.SimpleNamespace(params={}, opt_state=())
        for _ in range(n_steps):
            milestones.before_step(state)
            self.now += step_s
            self.clock.advance(1, 1.0)
        milestones.before_step(state)


def test_an_evaluation_comes_before_the_save_of_the_same_step():
    house = House(every_steps=5)
    house.train(house.milestones(), 5)
    assert house.events == [("eval", 5), ("recorded", 5), ("save", 5)]


def test_scoring_comes_before_the_save_and_is_due_again_after_a_signal():
    house = House(every_fraction=0.0, every_steps=5, bleu_every=0.5)
    milestones = house.milestones()
    house.run.coordinator.requested = True
    house.train(milestones, 5)
    assert house.events == [("write", 5), ("save", 5)]

    house.events.clear()
    house.run.coordinator.requested = False
    house.train(house.milestones(house.checkpoints.sidecar), 0)
    assert house.events == [("write", 5), ("scored", 5)]
    # Writing is no part of training: sizes at equal time train for equal time.
    assert house.clock.elapsed_s == 0.0
    # Nor is it at the end of a run, whose last scores stand at its last second.
    house.clock.advance(1, 1.0)
    assert finish.score(house.run, "network", {}, house.recorder)
    assert house.events[-1] == ("scored", 6) and house.clock.elapsed_s == 0.0


def test_nothing_is_scored_that_is_no_number():
    house = House(every_fraction=0.0, bleu_every=0.5)
    house.recorder.is_sound = False
    house.train(house.milestones(), 5)
    assert house.events == []


def test_the_steps_before_are_done_when_an_evaluation_or_a_save_begins():
    # Else their seconds count as the evaluation's, and the rate of the steps is too high.
    house = House(every_steps=1)
    state = types.SimpleNamespace(
        params={},
        opt_state=(),
        block_until_ready=lambda: house.events.append(("waited", house.clock.n_steps)),
    )
    milestones = house.milestones()
    house.clock.advance(1, 1.0)
    milestones.before_step(state)
    assert house.events == [("waited", 1), ("save", 1)]

    house.clock.advance(4, 4.0)
    house.events.clear()
    for _ in range(4):
        house.clock.advance(1, 1.0)
    milestones.before_step(state)
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


def test_an_evaluation_that_a_signal_prevented_is_made_when_the_run_goes_on():
    house = House()
    house.train(house.milestones(), 4)
    house.clock.advance(1, 1.0)  # due now, but a signal ends the loop
    milestones = house.milestones()
    assert not milestones.are_due()  # without a checkpoint's word

    house.clock.n_steps = 4
    house.milestones().save(None)
    sidecar = house.checkpoints.sidecar
    house.clock.n_steps = 5
    resumed = house.milestones(sidecar)
    assert resumed.are_due()
    house.train(resumed, 0)
    assert ("eval", 5) in house.events and not resumed.are_due()


def test_another_budget_counts_its_evaluations_anew():
    house = House()
    house.train(house.milestones(), 5)
    house.milestones().save(None)
    sidecar = house.checkpoints.sidecar
    sidecar["clock"]["limits"] = {"steps": 20}
    sidecar["evaluations"]["n_passed"] = 0
    assert not house.milestones(sidecar).are_due()


def test_an_error_that_ends_a_run_saves_its_state_first():
    house = House()
    house.train(house.milestones(), 3)
    house.milestones().rescue({})
    assert ("save", 3) in house.events
    assert house.events[-1] == "an error ends the run: checkpoint at step 3 is saved"


def test_a_state_that_the_device_has_lost_is_not_saved():
    house = House()
    house.train(house.milestones(), 3)
    lost = types.SimpleNamespace(is_deleted=lambda: True)
    house.milestones().rescue({"weights": lost})
    assert house.events == []


def test_a_save_that_fails_at_the_end_says_so_and_hides_no_other_error(monkeypatch):
    house = House()
    house.train(house.milestones(), 3)

    def fails(*_, **__):
        raise OSError("no space")

    monkeypatch.setattr(house.checkpoints, "save", fails)
    house.milestones().rescue({})
    assert house.events == ["step 3 could not be saved (OSError)"]


def test_a_step_is_saved_once_also_at_the_end():
    house = House(every_fraction=0.0, every_steps=3)
    milestones = house.milestones()
    house.train(milestones, 3)
    milestones.save(None, block=True)
    assert house.events == [("save", 3)]


def test_step_0_is_not_saved():
    house = House()
    house.milestones().save(None, block=True)
    assert house.events == []


def test_a_failed_save_is_made_up_for_before_the_next_step():
    house = House(every_fraction=0.0, every_steps=3)
    milestones = house.milestones()
    house.train(milestones, 3)
    house.checkpoints.save_failed = True
    house.train(milestones, 1)
    house.checkpoints.save_failed = False
    assert ("save", 4) in house.events


def test_a_due_save_waits_until_the_shards_are_compared():
    house = House(every_fraction=0.0, every_steps=2)
    milestones = house.milestones()
    house.verification.is_running = True
    house.train(milestones, 3)
    assert house.events == []
    house.verification.is_running = False
    house.train(milestones, 0)
    assert house.events == [("save", 3)]


def test_nothing_is_saved_that_learned_from_a_damaged_shard():
    def damaged():
        raise RunFailed("train-0-00000.bin is damaged")

    house = House(every_steps=1)
    house.train(house.milestones(), 1)
    house.verification.raise_damage = damaged
    house.verification.is_damaged = True
    with pytest.raises(RunFailed, match="train-0-00000.bin"):
        house.train(house.milestones(), 1)
    house.milestones().rescue({})
    assert house.events == [("save", 1)]


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
    assert sidecar["config"] == {"seed": 0} and sidecar["record"] == {"recent": []}
    assert sidecar["dataset"] == {"directory": "/d", "fingerprint": "f"}
    assert sidecar["evaluations"] == {"every": 0.0, "n_passed": 0, "also_at": []}
    assert sidecar["kept_for_hours"] == []


def test_the_seconds_of_evaluations_and_saves_are_counted_by_cause(monkeypatch):
    house = House(every_steps=5)
    seconds = iter(range(100))
    monkeypatch.setattr("cramjax.training.records.time.monotonic", lambda: float(next(seconds)))
    house.train(house.milestones(), 5)
    assert house.run.spent.eval_s == pytest.approx(1.0)
    assert house.run.spent.save_s == pytest.approx(1.0)


def test_a_folder_that_was_deleted_gets_its_files_and_a_checkpoint_again(monkeypatch):
    house = House()
    at = house.milestones()
    house.clock.advance(1, 1.0, 1)
    at.save("state")
    at.save("state")
    assert house.events == [("save", 1)]

    house.run.folder = types.SimpleNamespace(restore=lambda: True)
    described = []
    monkeypatch.setattr(milestones, "describe_start", described.append)
    at.save("state")
    assert described == [house.run] and house.events == [("reload", None), ("save", 1)]


def reasons(house, n_steps):
    """Train, and return what `before_step` says before each step and after the last."""
    milestones, state, said = house.milestones(), types.SimpleNamespace(params={}, opt_state=()), []
    for _ in range(n_steps):
        said.append(milestones.before_step(state))
        house.clock.advance(1, 1.0)
    return [*said, milestones.before_step(state)]


def test_a_held_out_loss_over_the_limit_ends_the_run_at_an_evaluation_only():
    """24hBERT judges its validation loss, at every evaluation once stop_after is spent."""
    house = House(every_fraction=0.4, stop_loss=1.5, stop_after=0.3)
    # Steps of a tenth: evaluations at 0.3, 0.4 and 0.8.
    failed = "early_termination"
    assert reasons(house, 5) == [None, None, None, failed, failed, None]
    assert [step for name, step in house.events if name == "eval"] == [3, 4]
    house = House(every_fraction=0.2, stop_loss=2.0, stop_after=0.3)
    assert reasons(house, 5) == [None] * 6


def test_the_limit_is_judged_where_it_begins_also_without_other_evaluations():
    house = House(every_fraction=0.0, stop_loss=1.5, stop_after=0.5)
    assert reasons(house, 7) == [None] * 5 + ["early_termination"] + [None] * 2
    assert [step for name, step in house.events if name == "eval"] == [5]


def test_a_held_out_loss_that_is_no_number_ends_the_run_at_any_time():
    house = House(every_fraction=0.1, stop_loss=6.0, stop_after=0.9)
    house.loss = float("nan")
    assert reasons(house, 1) == [None, "early_termination"]
    house = House(every_fraction=0.1)
    house.loss = float("nan")
    assert reasons(house, 1) == [None, None]


def test_a_checkpoint_is_due_at_the_first_step_behind_each_hour_and_says_so():
    house = House(every_fraction=0.0, every_minutes=1e9, at_hours=(1.0, 2.0, 2.4))
    milestones, noted = house.milestones(), {}
    for _ in range(9):
        house.train(milestones, 1, step_s=1200.0)  # three steps an hour
        noted[house.clock.n_steps] = (
            house.checkpoints.sidecar and house.checkpoints.sidecar["kept_for_hours"]
        )
    assert house.events == [("save", 3), ("save", 6), ("save", 8)]
    assert (noted[3], noted[6], noted[8]) == ([1.0], [2.0], [2.4])


def test_hours_that_a_checkpoint_has_passed_are_not_due_again_and_later_ones_are():
    house = House(every_fraction=0.0, every_minutes=1e9, every_steps=5, at_hours=(1.0, 2.0))
    house.train(house.milestones(), 5, step_s=1200.0)
    sidecar = house.checkpoints.sidecar
    assert house.events == [("save", 3)] and sidecar["kept_for_hours"] == [1.0]
    # It goes on from there. To compile took the second hour: the next step is kept for it.
    house.now, house.clock.n_steps = 8000.0, 3
    resumed = house.milestones(sidecar)
    house.train(resumed, 1)
    assert house.events == [("save", 3), ("save", 4)]
    assert house.checkpoints.sidecar["kept_for_hours"] == [2.0]


def test_an_hour_has_one_checkpoint_also_where_a_larger_budget_passes_it_again():
    house = House(every_fraction=0.0, every_minutes=1e9, at_hours=(1.0, 2.0))
    house.checkpoints.hours = {1.0}
    house.train(house.milestones(), 6, step_s=1200.0)
    assert house.events == [("save", 6)]
    assert house.checkpoints.sidecar["kept_for_hours"] == [2.0]


def test_a_save_that_failed_leaves_its_hours_to_the_next():
    house = House(every_fraction=0.0, every_minutes=1e9, at_hours=(1.0, 1.2))
    milestones = house.milestones()
    house.train(milestones, 3, step_s=1200.0)
    house.checkpoints.save_failed = True
    house.train(milestones, 1, step_s=1200.0)
    assert house.checkpoints.sidecar["kept_for_hours"] == [1.0, 1.2]

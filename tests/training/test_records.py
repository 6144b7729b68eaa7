import dataclasses
import types

import pytest

from cramjax.budget.clock import Clock
from cramjax.training.due import EvalDue
from cramjax.training.evaluate import EvalResult
from cramjax.training.loop import StepRecord
from cramjax.training.records import Recorder, Spent


class Writer:
    def __init__(self):
        self.lines = []

    def write(self, step, values):
        self.lines.append({"step": step} | values)

    def close(self):
        pass


class Silent:
    def update(self, **_):
        pass

    def evaluated(self, *_):
        pass


class Time:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def run():
    time = Time()
    clock = Clock(steps=100, time_source=time)
    clock.start()
    writer, spent = Writer(), Spent()
    recorder = Recorder(
        writer=writer,
        progress=Silent(),
        clock=clock,
        spent=spent,
        every_steps=5,
        peak_flops=2000.0,
        unigram_loss=5.0,
        started=0.0,
    )

    def step(number, seconds, loss=1.0, data_wait_s=0.0):
        time.now += seconds
        clock.advance(100, 1000, 4)
        metrics = {"loss": loss, "grad_norm": 0.5, "skipped": 0, "skipped_in_row": 0}
        recorder.record(
            StepRecord(
                step=number,
                fraction=number / 100,
                lr=0.1,
                batch_size=4,
                metrics=metrics,
                data_wait_s=data_wait_s,
            )
        )

    return time, writer, spent, recorder, step


def test_a_line_holds_the_mean_loss_and_the_rate_of_its_window(run):
    _, writer, _, _, step = run
    for number in range(1, 11):
        step(number, 0.5, loss=float(number))
    assert [line["step"] for line in writer.lines] == [5, 10]
    assert [line["loss"] for line in writer.lines] == [3.0, 8.0]
    assert writer.lines[1]["tokens_per_s"] == 200.0 and writer.lines[1]["mfu"] == 1.0


def test_evaluations_and_saves_do_not_count_into_the_rate(run):
    time, writer, spent, recorder, step = run
    for number in range(1, 6):
        step(number, 0.5)
    time.now += 30
    spent.eval_s += 30
    recorder.evaluated(EvalResult(2.0, 0.25))
    for number in range(6, 11):
        step(number, 0.5)
    assert writer.lines[1]["eval_loss"] == 2.0 and writer.lines[1]["eval_accuracy"] == 0.25
    assert writer.lines[1]["unigram_loss"] == 5.0
    assert writer.lines[2]["tokens_per_s"] == 200.0 and writer.lines[2]["elapsed_s"] == 35.0


def test_an_evaluation_notes_where_the_seconds_went_so_far(run):
    time, writer, spent, recorder, step = run
    spent.compile_s, spent.save_s = 0.5, 0.25
    for number in range(1, 6):
        step(number, 0.5, data_wait_s=0.125)
    # Of 2.5 seconds, 0.75 were no steps; a step that waits for its batch is a slow step.
    assert writer.lines[0]["tokens_per_s"] == pytest.approx(500 / 1.75, abs=0.1)
    time.now += 3
    spent.eval_s += 3
    recorder.evaluated(EvalResult(2.0, 0.25))
    noted = {key: writer.lines[1][key] for key in dataclasses.asdict(spent)}
    assert noted == {
        "compile_s": 0.5, "eval_s": 3.0, "save_s": 0.25, "data_wait_s": 0.625, "growth_s": 0.0
    }  # fmt: skip


def test_the_summary_loss_is_that_of_the_latest_steps(run):
    *_, recorder, step = run
    assert recorder.train_loss is None
    for number in range(1, 11):
        step(number, 0.1, loss=9.0)
    for number in range(11, 61):
        step(number, 0.1, loss=2.0)
    assert recorder.train_loss == 2.0


def test_the_summary_has_counts_losses_and_shares_of_the_time(run):
    time, _, spent, recorder, step = run
    for number in range(1, 11):
        step(number, 0.5)
    time.now += 5
    spent.eval_s += 2
    spent.save_s += 1
    spent.data_wait_s += 2
    recorder.evaluated(EvalResult(2.0, 0.25))

    session = types.SimpleNamespace(n_params=7, precision="float32", microbatch_size=4)
    summary = recorder.summary(session, "steps")
    assert summary["steps"] == 10 and summary["tokens"] == 1000 and summary["flops"] == 10_000
    assert summary["elapsed_s"] == 10.0 and summary["tokens_per_s"] == 100.0
    assert summary["mfu"] == 0.5 and summary["data_wait_fraction"] == 0.2
    assert summary["goodput"] == 0.5
    assert summary["eval_loss"] == 2.0 and summary["unigram_loss"] == 5.0
    assert summary["stop_reason"] == "steps" and summary["resumed_from"] is None
    assert summary["params"] == 7 and summary["microbatch_size"] == 4


def test_the_summary_has_the_scores_of_the_last_step_and_no_earlier_ones(run):
    *_, recorder, step = run
    recorder._progress.announce = lambda text: None
    session = types.SimpleNamespace(n_params=7, precision="float32", microbatch_size=4)
    scores = {"bleu": 20.0, "chrf": 40.0, "bleu_signature": "x"}
    step(1, 0.5)
    recorder.scored(scores)
    assert recorder.summary(session, "steps").items() >= scores.items()
    step(2, 0.5)
    assert "bleu" not in recorder.summary(session, "steps")


def test_seconds_spent_go_on_from_a_checkpoint():
    spent = Spent(compile_s=1.0)
    spent.load_state_dict({"compile_s": 5.0, "eval_s": 2.0})
    assert spent.total_s() == 7.0


def test_the_display_hears_when_the_next_evaluation_is_and_what_memory_is_used():
    time, heard = Time(), {}
    clock = Clock(steps=100, time_source=time)
    clock.start()
    recorder = Recorder(
        writer=Writer(),
        progress=types.SimpleNamespace(update=heard.update),
        clock=clock,
        spent=Spent(),
        every_steps=1,
        peak_flops=2000.0,
        unigram_loss=5.0,
        started=0.0,
        eval_due=EvalDue(every=0.25),
        memory=lambda: {"memory_bytes": 7},
    )

    metrics = {"loss": 1.0, "grad_norm": 0.5, "skipped": 0, "skipped_in_row": 0}
    for number in range(1, 101):
        time.now += 2.0
        clock.advance(100, 1000, 4)
        fraction = number / 100
        recorder.record(
            StepRecord(step=number, fraction=fraction, lr=0.1, batch_size=4, metrics=metrics)
        )
        if number == 20:
            # 80 steps of 2 s are left, and 5 of them until a quarter is spent.
            assert heard["eta_s"] == pytest.approx(160.0, rel=0.05)
            assert heard["next_eval_s"] == pytest.approx(10.0, rel=0.05)
    assert heard["next_eval_s"] is None and heard["memory_bytes"] == 7

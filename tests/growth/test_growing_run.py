"""A run whose network grows: exact over stops around a switch, sharded, counted, exported."""

import json
import os
import signal
import sys

import jax
import numpy as np
import pytest

import cramjax
from cramjax.budget.schedules import learning_rate
from cramjax.checkpoints import pretrained
from cramjax.errors import UserError
from cramjax.models import encoder
from cramjax.models.layers import FLOAT32
from cramjax.publishing.export import export
from cramjax.training import growing
from tests.e2e import test_main as cli

STAGES = [{"until": 0.3, "depth": 0.5, "width": 0.5, "length": 0.5}, {"until": 0.6, "depth": 0.5}]
N_STEPS = 10


def config(corpus, *more):
    small = [flag.removeprefix("--config.") for flag in cli.SMALL]
    return cramjax.get_config(
        "quickstart",
        *small,
        f"data.source=text:{corpus}",
        f"data.cache_dir={corpus.parent / 'prepared'}",
        "model.n_layers=4",
        "model.unroll=1",
        f"budget.steps={N_STEPS}",
        "eval.every_fraction=0.5",
        "log.every_steps=1",
        f"growth.stages={STAGES!r}",
        *more,
    )


class Stop:
    """Asks the run to stop after a step, as a cluster does."""

    def __init__(self, step):
        self.step = step

    def write(self, step, values):
        if step == self.step and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """A run that was never stopped, and its summary."""
    folder = tmp_path_factory.mktemp("growth") / "whole"
    return folder, cramjax.train(config(corpus), folder)


def rates_without(corpus):
    """Returns the learning rates of a run's steps without stages."""
    schedule = config(corpus).schedule
    steps = range(1, N_STEPS + 1)
    return [learning_rate(schedule, 5e-3, step / N_STEPS, step) for step in steps]


@pytest.mark.slow
def test_stopped_anywhere_it_comes_to_the_same(whole, corpus, tmp_path):
    folder, _ = whole
    sizes = []
    # Within the first stage, after the last step of a stage, and within the last one.
    for step in (1, 3, 8):
        summary = cramjax.train(config(corpus), tmp_path / "run", sinks=[Stop(step)])
        assert summary["stop_reason"] == "sigterm" and summary["steps"] >= step
        sizes.append(pretrained.read(tmp_path / "run").config.n_layers)
    assert sizes == [2, 2, 4]
    summary = cramjax.train(config(corpus), tmp_path / "run")
    assert summary["steps"] == N_STEPS and summary["resumed_from"] == 9
    ours, theirs = (cramjax.load(path).params for path in (tmp_path / "run", folder))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_a_stage_of_factors_and_means_exports_as_the_network_it_is(corpus, tmp_path):
    """Means of embeddings are of training alone, and factors become the matrices they stand for."""
    stages = [{"until": 0.5, "depth": 0.5, "rank": 8, "pool": 2}]
    settings = config(corpus, f"growth.stages={stages!r}")
    summary = cramjax.train(settings, tmp_path / "run", sinks=[Stop(2)])
    assert summary["stop_reason"] == "sigterm"
    trained = cramjax.load(tmp_path / "run")
    assert (trained.config.n_layers, trained.config.ffn_rank) == (2, 8)
    export(tmp_path / "run", tmp_path / "hf", tell=lambda text: None)
    found = cramjax.load(tmp_path / "hf")
    assert (found.config.n_layers, found.config.ffn_rank) == (2, 0)
    tokens = np.arange(10, 42, dtype=np.int32)[None]
    before, after = (
        encoder.encode(model.config, FLOAT32, model.params, jax.numpy.asarray(tokens))
        for model in (trained, found)
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    summary = cramjax.train(settings, tmp_path / "run")
    assert summary["steps"] == N_STEPS and np.isfinite(summary["eval_loss"])
    assert cramjax.load(tmp_path / "run").config.ffn_rank == 0


# The checkpoint of step 2 is written in the background: the kill comes when it is complete.
KILLED = """
import os, pathlib, signal, sys, time, cramjax
from tests.growth import test_growing_run as this
checkpoint = pathlib.Path(sys.argv[2]) / "checkpoints" / "2"
class Kill:
    left = int(sys.argv[3])
    def write(self, step, values):
        Kill.left -= "eval_loss" in values and step == 3
        if not Kill.left:
            while not checkpoint.exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
    def close(self):
        pass
config = this.config(pathlib.Path(sys.argv[1]), "checkpoint.every_steps=2")
cramjax.train(config, sys.argv[2], sinks=[Kill()])
"""


@pytest.mark.slow
@pytest.mark.parametrize("evaluation", [1, 2], ids=["before growing", "after growing"])
def test_killed_in_the_middle_of_a_switch_it_comes_to_the_same(whole, corpus, tmp_path, evaluation):
    """A real kill between the last step of a stage and the first of the next, around growing."""
    devices = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}
    command = [sys.executable, "-c", KILLED, str(corpus), str(tmp_path / "run"), str(evaluation)]
    done = cli.run(command, check=False, **devices)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert pretrained.read(tmp_path / "run").config.n_layers == 2
    assert cramjax.train(config(corpus), tmp_path / "run")["resumed_from"] == 2
    ours, theirs = (cramjax.load(path).params for path in (tmp_path / "run", whole[0]))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_what_was_spent_is_counted_stage_by_stage(whole, corpus):
    folder, summary = whole
    assert summary["growth_s"] > 0 and cramjax.load(folder).config.n_layers == 4
    lines = [line for line in cli.lines(folder) if "loss" in line]
    assert [line["tokens"] for line in lines[:5]] == [
        16 * 16,
        2 * 16 * 16,
        3 * 16 * 16,
        3 * 256 + 512,
        3 * 256 + 1024,
    ]
    assert summary["tokens"] == 3 * 256 + 7 * 512
    evaluated = [line for line in cli.lines(folder) if "eval_loss" in line]
    assert len({line["unigram_loss"] for line in evaluated}) == 1
    plain = cramjax.get_config(
        "quickstart",
        "budget.steps=1",
        *[flag.removeprefix("--config.") for flag in cli.SMALL],
        "model.n_layers=4",
    )
    assert summary["flops"] < 0.9 * _flops(plain, corpus) * N_STEPS * 16
    assert json.loads((folder / "config.json").read_text())["growth"]["stages"]


def test_a_stage_of_the_same_network_is_not_evaluated_twice(corpus, tmp_path):
    stages = [{"until": 0.5, "mask_rate": 0.3, "length": 0.5}]
    settings = config(corpus, f"growth.stages={stages!r}", "eval.every_fraction=1.0")
    cramjax.train(settings, tmp_path / "run")
    evaluated = [line["step"] for line in cli.lines(tmp_path / "run") if "eval_loss" in line]
    assert evaluated == [N_STEPS // 2, N_STEPS]


def test_stages_of_short_pairs_are_evaluated_on_the_whole_ones():
    pairs = cramjax.get_config(
        "mt_small", "data.target_len=48", "growth.stages=[{'until': 0.5, 'length': 0.5}]"
    )
    made = growing.Stages(pairs, None, lambda text: None)
    lengths = []
    for whole in (False, True):
        data = made.config_of(0, whole_sequences=whole).data
        lengths.append((data.seq_len, data.target_len))
    assert lengths == [(32, 24), (64, 48)]


def _flops(plain, corpus):
    from cramjax.training import session

    vocabulary = session.AssumedVocabulary(vocab_size=256)
    return session.session_on(plain, vocabulary, jax.devices()).objective.flops


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("mesh.data=2", "mesh.fsdp=4"),
        ("growth.depth=identity", "growth.moments=reset"),
        ("growth.stages=[{'until': 0.5, 'hidden': 1}]", "growth.rewarm=0.2"),
        ("growth.stages=[{'until': 0.5, 'length': 0.5, 'batch': 32, 'lr': 0.5}]",),
    ],
)
def test_it_grows_sharded_and_in_other_ways(corpus, tmp_path, more):
    summary = cramjax.train(config(corpus, *more), tmp_path / "run")
    assert summary["steps"] == N_STEPS and np.isfinite(summary["eval_loss"])
    lines = [line for line in cli.lines(tmp_path / "run") if "loss" in line]
    if "batch" in more[0]:
        assert [line["tokens"] for line in lines] == [512 * (i + 1) for i in range(N_STEPS)]
        plain = rates_without(corpus)
        np.testing.assert_allclose(
            np.divide([line["lr"] for line in lines][:9], plain[:9]), [0.5] * 5 + [1] * 4, rtol=1e-5
        )
    if "growth.rewarm=0.2" in more:
        rates = [line["lr"] for line in lines]
        plain = rates_without(corpus)
        np.testing.assert_allclose(
            np.divide(rates[:9], plain[:9]), [1, 1, 1, 1, 1, 0.5, 1, 1, 1], rtol=1e-5
        )


@pytest.mark.slow
def test_stages_by_steps_under_flops_and_the_time_to_the_loss_of_a_control(corpus, tmp_path):
    """The run that grows ends before its control: started again, it is compared."""
    stages = [{"until": 0.5, "width": 0.5}]
    small, full = (
        _flops(
            config(corpus, "growth.stages=None", "model.n_layers=2", f"model.d_ff={d_ff}"), corpus
        )
        for d_ff in (32, 64)
    )
    shape = ("model.n_layers=2", "eval.every_fraction=0.25")
    grown = config(
        corpus,
        *shape,
        "budget.steps=None",
        f"budget.flops={16 * 4 * (small + full)}",
        "schedule.batch_ramp=0",
        f"growth.stages={stages!r}",
        "growth.until=steps",
        "growth.moments=reset",
        f"growth.control={tmp_path / 'control'}",
    )
    assert cramjax.train(grown, tmp_path / "run")["control"] is None
    lines = [line["flops"] for line in cli.lines(tmp_path / "run") if "eval_loss" in line]
    steps = [line["step"] for line in cli.lines(tmp_path / "run") if "loss" in line]
    assert steps == list(range(1, 9))
    assert small < full and lines.count(16 * 4 * small) == 2  # before and after growing

    control = config(corpus, *shape, "budget.steps=8", "growth.stages=None")
    ended = cramjax.train(control, tmp_path / "control")
    found = cramjax.train(grown, tmp_path / "run")["control"]
    assert found["eval_loss"] == ended["eval_loss"] and found["flops"] == ended["flops"]
    own = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert own["control"] == found
    # One of the two came to the loss of the other.
    is_better = own["eval_loss"] <= ended["eval_loss"]
    assert (found["reached_after_s"] is not None) == is_better
    assert (found["control_reached_after_flops"] is not None) == (not is_better)


@pytest.mark.slow
def test_the_loss_does_not_jump_where_the_function_stays(corpus, tmp_path):
    """Wider by sharing and deeper by identity, at a learning rate of zero: the loss stays."""
    stages = [{"until": 0.5, "depth": 0.5, "width": 0.5}]
    more = (
        "growth.depth=identity",
        "optimizer.lr=0.0",
        "optimizer.weight_decay=0.0",
        "eval.every_fraction=0.1",
        f"growth.stages={stages!r}",
    )
    cramjax.train(config(corpus, *more, "budget.steps=4"), tmp_path / "run")
    losses = [line["eval_loss"] for line in cli.lines(tmp_path / "run") if "eval_loss" in line]
    assert len(losses) >= 4
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.slow
def test_a_stage_that_cannot_be_made_keeps_what_the_one_before_learned(
    corpus, tmp_path, monkeypatch
):
    def fail(self, number, before):
        raise UserError("no room for it")

    monkeypatch.setattr(growing.Stages, "_prepare", fail)
    with pytest.raises(UserError, match="no room for it"):
        cramjax.train(config(corpus), tmp_path / "run")
    assert pretrained.read(tmp_path / "run").step == 3  # the last of the first stage
    monkeypatch.undo()
    assert cramjax.train(config(corpus), tmp_path / "run")["resumed_from"] == 3


@pytest.mark.slow
def test_a_budget_of_hours_that_is_over_before_the_first_step_ends_all_the_same(corpus, tmp_path):
    """Every run takes one step at least; with stages, those that had no time are passed through."""
    more = ("budget.steps=None", "budget.hours=1e-6")
    plain = cramjax.train(config(corpus, *more, "growth.stages=None"), tmp_path / "plain")
    grown = cramjax.train(config(corpus, *more), tmp_path / "grown")
    assert (
        plain["stop_reason"] == grown["stop_reason"] == "hours"
        and plain["steps"] == grown["steps"] == 1
    )
    assert cramjax.load(tmp_path / "grown").config.n_layers == 4

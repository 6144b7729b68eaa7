"""Masks that follow what the model gets wrong: their odds, their counts, and the state of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cramjax
from cramjax.config.resolve import get_config
from cramjax.errors import UserError
from cramjax.models import encoder, network
from cramjax.objectives import masking
from cramjax.optim.scale import initial_loss_scale
from cramjax.parallel import mesh as meshes
from cramjax.training.state import TalliedState, tally_of
from cramjax.training.step import make_train_step
from tests.e2e import test_main as cli
from tests.growth.test_growing_run import Stop
from tests.stepping import batches, losses, open_tiny

MASKING = masking.Masking(
    mask_rate=0.25, mask_share=0.5, random_share=0.0, mask_id=4, special_ids=(0, 3, 4), vocab_size=9
)
TINY = ("objective.hard_masks=1.0", "model.unroll=1")


def test_hard_tokens_are_predicted_more_and_masked_as_often_as_others():
    n_rows = 2000
    row = np.array([7, 8] * 6 + [3, 3, 3, 3])  # easy, hard, …, and special ones
    tokens = jnp.asarray(np.tile(row, (n_rows, 1)), jnp.int32)
    odds = jnp.ones(9).at[8].set(4.0)[tokens]

    @jax.jit
    def draw(rows):
        return vars(masking.mask_tokens(MASKING, jax.random.key(0), tokens, rows, odds))

    rows = jnp.arange(n_rows, dtype=jnp.int32)
    batch = jax.tree.map(np.asarray, draw(rows))
    # Each row is drawn alone.
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[::-1], b), batch, draw(rows[::-1]))

    assert (batch["weights"] == 1).all()  # four of sixteen in every row, none of them special
    assert all(len(set(at)) == 4 for at in batch["positions"][:50])
    hard = batch["labels"] == 8
    # The first one is hard with odds of 4 to 1, the next with a little less.
    assert 0.7 < hard.mean() < 0.79
    masked = np.take_along_axis(batch["inputs"], batch["positions"], 1) == 4
    for kind in (hard, ~hard):
        assert abs(masked[kind].mean() - 0.5) < 0.03


def test_counts_are_those_of_the_logits_and_fade():
    objective = open_tiny(*TINY).objective
    params = network.init_params(objective.network, jax.random.key(1))
    tokens, key = jnp.asarray(batches(1)[0][:4]), jax.random.key(2)
    rows, tally = jnp.arange(4, dtype=jnp.int32), objective.initial_tally()
    odds = objective.odds(tally)
    assert len(set(odds.tolist())) == 1

    @jax.jit
    def both(params):
        batch, hidden, _ = objective.masked(
            params, key, tokens.astype(jnp.int32), rows, odds[tokens]
        )
        logits = encoder.head(objective.network, objective.precision, params, hidden)
        guesses = jnp.argmax(logits, axis=-1)
        return objective.tallied_loss(params, key, tokens, rows, tally), batch.labels, guesses

    (_, weight, counts), labels, guesses = jax.tree.map(np.asarray, both(params))
    hits = guesses == labels
    seen, right = np.zeros((2, 64), np.int32)
    np.add.at(seen, labels, 1)
    np.add.at(right, labels, hits)
    np.testing.assert_array_equal(counts["seen"], seen)
    np.testing.assert_array_equal(counts["right"], right)
    assert weight == seen.sum() and hits.sum() == right.sum()

    later = objective.next_tally(objective.next_tally(tally, counts), counts)
    np.testing.assert_allclose(later["seen"], 1.995 * seen, rtol=1e-6)
    known = {"seen": jnp.full(64, 99.0), "right": jnp.full(64, 99.0).at[5].set(0.0)}
    assert float(objective.odds(known)[5]) == pytest.approx(0.995)
    assert float(objective.odds(known)[6]) == pytest.approx(1 / 30)


class Counting:
    """A `TallyingObjective` that learns one number, and counts the tokens it reads."""

    n_predicted = 8

    def initial_tally(self):
        return {"seen": jnp.zeros(64)}

    def tallied_loss(self, params, key, tokens, rows, tally):
        tokens = tokens.astype(jnp.int32)
        nats = params["w"] * (1.0 + tally["seen"][tokens])
        counts = jnp.zeros(64, jnp.int32).at[tokens].add(1)
        return jnp.sum(nats), jnp.float32(tokens.size), {"seen": counts}

    def loss(self, params, key, tokens, rows):
        raise AssertionError("its loss needs the tally")

    def next_tally(self, tally, counts):
        return {"seen": 0.5 * tally["seen"] + counts["seen"].astype(jnp.float32)}


def test_the_step_adds_counts_over_microbatches_and_devices():
    data = batches(3, rows=32, length=8)
    mesh = meshes.make_mesh(data=8, fsdp=1, tensor=1, devices=jax.devices())
    results = []
    for on, n_micro in ((None, 1), (mesh, 2)):
        step = jax.jit(
            make_train_step(
                Counting(), optax.sgd(0.01), clip_norm=None, dynamic_scale=False, mesh=on
            )
        )
        params = {"w": jnp.ones(())}
        state = TalliedState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optax.sgd(0.01).init(params),
            loss_scale=initial_loss_scale(False),
            tally=Counting().initial_tally(),
        )

        losses_of = []
        for tokens in data:
            batch = jnp.asarray(tokens.reshape(n_micro, -1, 8))
            scalars = jnp.uint32(0), jnp.float32(1.0), jnp.int32(n_micro)
            state, metrics = step(state, batch, *scalars)
            losses_of.append(float(metrics["loss"]))
        results.append((losses_of, np.asarray(tally_of(state)["seen"])))
    np.testing.assert_allclose(*[values for values, _ in results], rtol=1e-5)
    np.testing.assert_array_equal(*[seen for _, seen in results])
    expected = sum(0.5**age * np.bincount(data[2 - age].ravel(), minlength=64) for age in range(3))
    np.testing.assert_allclose(results[0][1], expected)


@pytest.mark.slow
def test_microbatches_on_several_devices_keep_the_tally_of_one():
    whole, state = losses(open_tiny(*TINY, "microbatch_size=16"), batches(4))
    mesh = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    values, other = losses(open_tiny(*TINY, "microbatch_size=8", *mesh, devices=8), batches(4))
    np.testing.assert_allclose(values, whole, rtol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, tally_of(state), tally_of(other))
    assert 0 < tally_of(state)["right"].sum() < tally_of(state)["seen"].sum()


@pytest.mark.slow
def test_copies_on_eight_devices_keep_the_tally_of_one():
    whole, state = losses(open_tiny(*TINY, "microbatch_size=16"), batches(4))
    values, other = losses(open_tiny(*TINY, "microbatch_size=8", devices=8), batches(4))
    np.testing.assert_allclose(values, whole, rtol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, tally_of(state), tally_of(other))


def train(corpus, workdir, *more, sinks=()):
    small = [flag.removeprefix("--config.") for flag in cli.SMALL]
    data = f"data.source=text:{corpus}", f"data.cache_dir={corpus.parent / 'prepared'}"
    config = cramjax.get_config("quickstart", *small, *data, "budget.steps=8", *more)
    return cramjax.train(config, workdir, sinks=sinks)


@pytest.mark.slow
def test_a_stopped_run_ends_as_one_that_was_not(corpus, tmp_path):
    hard = ("objective.hard_masks=1.0", "log.every_steps=1")
    whole = train(corpus, tmp_path / "whole", *hard)
    train(corpus, tmp_path / "stopped", *hard, sinks=[Stop(5)])
    with pytest.raises(UserError, match="tally.* is only in the checkpoint"):
        train(corpus, tmp_path / "stopped")
    resumed = train(corpus, tmp_path / "stopped", *hard)
    assert resumed["resumed_from"] and resumed["eval_loss"] == whole["eval_loss"]
    ours, theirs = (cramjax.load(tmp_path / name).params for name in ("stopped", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert train(corpus, tmp_path / "plain")["eval_loss"] != whole["eval_loss"]


def test_it_goes_with_masked_language_modelling_alone():
    with pytest.raises(UserError, match="hard_masks=1.0: needs objective.name=mlm"):
        get_config("bert_1day:script", "objective.hard_masks=1.0")
    with pytest.raises(UserError, match="hard_masks=0.5: objective.causal=True masks nothing"):
        get_config("bert_1day", "objective.hard_masks=0.5", "objective.causal=True")

"""A trailing mean of the parameters: kept with the optimizer, scored, loaded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cramjax
from cramjax.optim.average import average_of, with_trailing_average
from tests.e2e import test_main as cli
from tests.growth.test_growing_run import Stop


def test_it_is_a_mean_at_first_and_forgets_later():
    transform = with_trailing_average(optax.scale(2.0), 4)
    values = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    state = transform.init({"w": jnp.asarray(values[0])})
    expected = np.zeros(3, np.float32)
    for number, value in enumerate(values, start=1):
        updates, state = transform.update({"w": jnp.ones(3)}, state, {"w": jnp.asarray(value)})
        np.testing.assert_array_equal(updates["w"], 2 * np.ones(3))
        expected += (value - expected) / min(number, 4)
        if number == 4:
            np.testing.assert_allclose(expected, values[:4].mean(0), rtol=1e-5)
        np.testing.assert_allclose(average_of(state)["w"], expected, rtol=1e-5, atol=1e-6)


def test_an_optimizer_without_it_has_none():
    assert average_of(optax.adam(1.0).init({"w": jnp.ones(2)})) is None


def train(corpus, workdir, *more, sinks=()):
    small = [flag.removeprefix("--config.") for flag in cli.SMALL]
    config = cramjax.get_config(
        "quickstart",
        *small,
        f"data.source=text:{corpus}",
        f"data.cache_dir={corpus.parent / 'prepared'}",
        "budget.steps=8",
        "log.every_steps=1",
        *more,
    )
    return cramjax.train(config, workdir, sinks=sinks)


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_mean_and_its_loss_is_the_means(corpus, tmp_path):
    average = "optimizer.average=6"
    whole = train(corpus, tmp_path / "whole", average)
    train(corpus, tmp_path / "stopped", average, sinks=[Stop(5)])
    train(corpus, tmp_path / "plain", sinks=[Stop(5)])
    # A stopped run is loaded with its mean as well.
    stopped, plain = (cramjax.load(tmp_path / name).params for name in ("stopped", "plain"))
    assert not all(jax.tree.leaves(jax.tree.map(np.allclose, stopped, plain)))
    resumed = train(corpus, tmp_path / "stopped", average)
    assert resumed["resumed_from"] and resumed["eval_loss"] == whole["eval_loss"]
    ours, theirs = (cramjax.load(tmp_path / name).params for name in ("stopped", "whole"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    # The same steps without a mean end elsewhere.
    last = train(corpus, tmp_path / "last")
    assert last["train_loss"] == whole["train_loss"] and last["eval_loss"] != whole["eval_loss"]

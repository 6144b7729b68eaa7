"""The gradient noise scale, for a loss whose gradients have a known mean and covariance."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cramjax
from cramjax.config.resolve import get_config
from cramjax.errors import UserError
from cramjax.optim.scale import initial_loss_scale
from cramjax.training.state import TrainState
from cramjax.training.step import make_train_step
from tests.e2e import test_main as cli

N_MICRO, ROWS, DIM = 4, 8, 16
# Of a step: the seed and the learning rate.
SCALARS = np.uint32(0), np.float32(0.0)


class Quadratic:
    """Half the square distance to each row: gradients are p - row."""

    n_predicted = 1

    def loss(self, params, key, batch, rows):
        apart = params["p"][None] - batch.astype(jnp.float32)
        return 0.5 * jnp.sum(jnp.square(apart)), jnp.float32(len(rows))


def test_it_is_the_covariance_over_the_square_of_the_gradient():
    numbers = np.random.default_rng(0)
    step = jax.jit(
        make_train_step(
            Quadratic(),
            optax.scale(0.0),
            clip_norm=None,
            dynamic_scale=False,
            noise_scale=True,
        )
    )
    params = {"p": jnp.full((DIM,), 103.0)}
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optax.scale(0.0).init(params),
        loss_scale=initial_loss_scale(False),
    )  # fmt: skip

    noise, signal = [], []
    for _ in range(300):
        # The numbers have mean 100 and variance 110 / 3.
        batch = numbers.integers(90, 111, (N_MICRO, ROWS, DIM)).astype(np.uint16)
        _, metrics = step(state, batch, *SCALARS, np.int32(N_MICRO))
        noise.append(float(metrics["noise"]))
        signal.append(float(metrics["signal"]))
    np.testing.assert_allclose(np.mean(noise), DIM * 110 / 3, rtol=0.05)
    np.testing.assert_allclose(np.mean(signal), DIM * 3.0**2, rtol=0.1)

    _, metrics = step(state, batch, *SCALARS, np.int32(1))
    assert float(metrics["noise"]) == float(metrics["signal"]) == 0.0


@pytest.mark.slow
def test_a_run_logs_it_on_request(corpus, tmp_path):
    small = [flag.removeprefix("--config.") for flag in cli.SMALL]
    common = (
        f"data.source=text:{corpus}",
        f"data.cache_dir={corpus.parent / 'prepared'}",
        "budget.steps=6",
    )
    config = get_config("quickstart", *small, *common, "log.noise_scale=True", "log.every_steps=2")
    cramjax.train(config, tmp_path / "run")
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    scales = [line["noise_scale"] for line in lines if "noise_scale" in line]
    assert scales and all(np.isfinite(scales))

    with pytest.raises(UserError, match="set microbatch_size to at most half of batch_size=16"):
        get_config("quickstart", *small, "log.noise_scale=True", "microbatch_size=16")

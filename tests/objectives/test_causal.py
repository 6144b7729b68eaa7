"""Left to right: what an encoder may learn before masked tokens, with the same parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cramjax
from cramjax.config import stages
from cramjax.config.resolve import get_config
from cramjax.errors import UserError
from cramjax.models import encoder, network
from cramjax.models.layers import FLOAT32
from cramjax.objectives import masking
from tests import stepping
from tests.e2e import test_main as cli


def made():
    return stepping.shared_tiny("objective.causal=True", "objective.mask_rate=0.9")


def test_no_position_sees_a_later_token():
    net = made().objective.network
    params = network.init_params(net, jax.random.key(1))
    tokens = stepping.batches(1, rows=2)[0].astype(np.int32)
    changed = tokens.copy()
    changed[:, 20:] = 7
    encode = jax.jit(lambda t: encoder.encode(net, FLOAT32, params, t, causal=True))
    before, after = encode(tokens), encode(changed)
    np.testing.assert_allclose(before[:, :20], after[:, :20], atol=1e-6)
    assert not np.allclose(before[:, 20:], after[:, 20:], atol=1e-2)


def test_it_learns_what_follows_and_nothing_else():
    """A token that stood in its own prediction would make rows without any rule learnable."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 50, (40, 16, 1))
    rule = (3 + (starts + np.arange(32)) % 50).astype(np.uint16)
    learned, _ = stepping.losses(made(), rule)
    assert learned[-1] < 0.5 * learned[0]
    chance, _ = stepping.losses(made(), stepping.batches(40))
    assert min(chance) > np.log(53) - 0.1


def test_nothing_is_masked_and_first_tokens_are_not_predicted():
    objective = made().objective
    tokens = jnp.asarray(stepping.batches(1, rows=16)[0] % 50 + 5, jnp.int32)  # ordinary ones
    key, rows = jax.random.key(0), jnp.arange(16)
    inputs, labels = objective.preview(key, tokens, rows)
    np.testing.assert_array_equal(inputs, tokens)
    assert labels.shape == (16, objective.n_predicted)
    params = network.init_params(objective.network, key)
    _, weight = jax.jit(objective.loss)(params, key, tokens, rows)
    # 29 of 32 positions are drawn, and in most rows the first one is among them.
    mask_key, _ = jax.random.split(key)
    drawn = masking.mask_tokens(objective.corruption, mask_key, tokens, rows).positions
    n_first = int((drawn == 0).sum())
    assert 0 < n_first < 16 and weight == 16 * objective.n_predicted - n_first


@pytest.mark.slow
def test_a_run_goes_from_left_to_right_to_masked_tokens(corpus, tmp_path):
    small = [flag.removeprefix("--config.") for flag in cli.SMALL]
    listed = [{"until": 0.5, "causal": True, "mask_rate": 0.5}]
    config = cramjax.get_config(
        "quickstart",
        *small,
        f"data.source=text:{corpus}",
        f"data.cache_dir={corpus.parent / 'prepared'}",
        "budget.steps=8",
        "log.every_steps=1",
        f"growth.stages={listed!r}",
    )
    summary = cramjax.train(config, tmp_path / "run")
    assert summary["steps"] == 8
    assert np.isfinite(summary["eval_loss"])


def test_stages_say_their_rate_and_direction():
    listed = [{"until": 0.5, "mask_rate": 0.3, "causal": True}, {"until": 0.75, "mask_rate": 0.2}]
    config = get_config("quickstart", f"growth.stages={listed!r}", "objective.mask_rate=0.15")
    found = [(stage.mask_rate, stage.causal) for stage in stages.of(config)]
    assert found == [(0.3, True), (0.2, False), (0.15, False)]


@pytest.mark.parametrize(
    ("recipe", "listed", "message"),
    [
        ("quickstart", {"mask_rate": 2}, "mask_rate=2: must be a share of the positions"),
        ("quickstart", {"causal": 1}, "causal=1: must be True or False"),
        ("quickstart", {"causal": True, "pool": 2}, "objective.pool=2: a mean holds later tokens"),
        ("t5_1day", {"causal": True}, "growth.stages[0].causal: needs model.family=encoder"),
    ],
)
def test_mistakes_are_named(recipe, listed, message):
    with pytest.raises(UserError) as caught:
        get_config(recipe, f"growth.stages={[{'until': 0.5, **listed}]!r}")
    assert message in str(caught.value)

"""The train step: accumulation equals the big batch on any devices; bad gradients are skipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.config.resolve import get_config
from cramjax.objectives.objective import Objective
from cramjax.parallel import mesh as meshes
from cramjax.training import session
from cramjax.training.state import initial_state
from cramjax.training.step import make_train_step
from tests.stepping import batches, losses, one_device, open_tiny, shared_tiny


@pytest.fixture(scope="module")
def whole():
    return losses(shared_tiny("microbatch_size=16"), batches(4))


def test_it_learns(whole):
    made = shared_tiny("microbatch_size=16")
    values, _ = losses(made, np.repeat(batches(1), 60, axis=0))
    assert values[-1] < values[0] - 0.5


@pytest.mark.parametrize("microbatch_size", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_accumulation_equals_the_big_batch(whole, microbatch_size):
    values, state = losses(open_tiny(f"microbatch_size={microbatch_size}"), batches(4))
    np.testing.assert_allclose(values, whole[0], rtol=1e-5)
    # Adam's first steps divide tiny gradients by themselves, so parameters are compared loosely.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), state.params, whole[1].params
    )


def test_the_number_of_microbatches_is_a_run_time_argument():
    made = open_tiny("microbatch_size=4")
    data = batches(2)
    part, _ = losses(made, data, n_micro=2)
    small = open_tiny("microbatch_size=4", "batch_size=8")
    alone, _ = losses(small, data[:, :8])
    np.testing.assert_allclose(part, alone, rtol=1e-5)


SLOW_MESHES = [
    pytest.param(mesh, marks=pytest.mark.slow)
    for mesh in ((8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2))
]


@pytest.mark.parametrize("mesh", [(2, 2, 2), *SLOW_MESHES], ids=str)
def test_every_mesh_gives_the_losses_of_one_device(whole, mesh):
    overrides = [f"mesh.{axis}={size}" for axis, size in zip(meshes.AXES, mesh, strict=True)]
    values, state = losses(open_tiny("microbatch_size=8", *overrides, devices=8), batches(4))
    np.testing.assert_allclose(values, whole[0], rtol=2e-5)
    sharded = [
        leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated
    ]
    assert bool(sharded) == (mesh[1] > 1 or mesh[2] > 1)


@pytest.mark.parametrize(
    "name, lr",
    [
        pytest.param("adafactor", 0.1, marks=pytest.mark.slow),
        pytest.param("lamb", 0.1, marks=pytest.mark.slow),
        pytest.param("lion", 1e-3, marks=pytest.mark.slow),
        # The quickstart trains by it, from end to end.
        pytest.param("muon", 1e-2, marks=pytest.mark.slow),
    ],
)
def test_every_optimizer_trains(name, lr):
    made = open_tiny("microbatch_size=16", f"optimizer.name={name}")
    values, _ = losses(made, np.repeat(batches(1), 30, axis=0), lr=lr)
    assert values[-1] < values[0] - 0.1


@pytest.mark.parametrize("precision", [pytest.param("bfloat16", marks=pytest.mark.slow), "float16"])
def test_narrow_formats_train_to_the_loss_of_float32(precision):
    data = np.repeat(batches(1), 40, axis=0)
    wide, _ = losses(shared_tiny("microbatch_size=16"), data, lr=3e-3)
    narrow, state = losses(open_tiny("microbatch_size=16", f"precision={precision}"), data, lr=3e-3)
    assert abs(np.mean(narrow[-5:]) - np.mean(wide[-5:])) < 0.1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    made = shared_tiny("microbatch_size=16")
    bad = _Poisoned(made.objective)
    step = jax.jit(make_train_step(bad, made.optimizer, clip_norm=0.5, dynamic_scale=False))
    state = initial_state(made.objective, made.optimizer, False, made.abstract, 0)
    scalars = jnp.uint32(0), jnp.float32(1e-2), jnp.int32(1)
    good, poisoned = jnp.asarray(batches(1)), jnp.zeros((1, 16, 32), jnp.uint16).at[:].set(9)
    after_good, metrics = step(state, good, *scalars)
    assert metrics["skipped"] == 0
    after_bad, metrics = step(after_good, poisoned, *scalars)
    assert metrics["skipped"] == 1 and metrics["skipped_in_row"] == 1 and after_bad.step == 2
    jax.tree.map(np.testing.assert_array_equal, after_bad.params, after_good.params)
    jax.tree.map(np.testing.assert_array_equal, after_bad.opt_state, after_good.opt_state)
    _, metrics = step(after_bad, good, *scalars)
    assert metrics["skipped"] == 1 and metrics["skipped_in_row"] == 0


@dataclasses.dataclass(frozen=True)
class _Poisoned:
    """An objective whose loss is not a number for a batch of nines."""

    objective: Objective

    @property
    def n_predicted(self):
        return self.objective.n_predicted

    def loss(self, params, key, tokens, rows):
        loss, weight = self.objective.loss(params, key, tokens, rows)
        return jnp.where(jnp.all(tokens == 9), jnp.nan, 1.0) * loss, weight


def test_the_step_donates_its_state_and_moves_nothing_behind_its_back():
    made = shared_tiny("microbatch_size=16")
    compiled, _ = session.compile_train_step(made)
    state = initial_state(made.objective, made.optimizer, made.dynamic_scale, made.abstract, 0)
    batch = jax.device_put(batches(1), meshes.batch_sharding(made.mesh, 3, 1))
    scalars = (np.uint32(0), np.float32(1e-2), np.int32(1))
    scalars = jax.device_put(scalars, meshes.replicated(made.mesh))
    leaf = jax.tree.leaves(state.params)[0]
    with jax.transfer_guard("disallow"):
        compiled(state, batch, *scalars)
    assert leaf.is_deleted()


@pytest.mark.parametrize(
    "recipe",
    [
        "bert_1day",
        pytest.param("bert_1day_modern", marks=pytest.mark.slow),
        pytest.param("bert_24h_academic", marks=pytest.mark.slow),
    ],
)
def test_the_program_does_little_more_than_the_products_of_the_model(recipe):
    overrides = (
        "model.n_layers=2",
        "data.vocab_size=4096",
        "batch_size=8",
        "microbatch_size=8",
        "schedule.batch_ramp=0",
        "precision=float32",
        "eval.batch_size=8",
        "model.dropout=0.0",
        "model.attention_dropout=0.0",
    )
    with one_device():
        made = session.open_session(
            get_config(recipe, *overrides), session.AssumedVocabulary(vocab_size=4096)
        )
        compiled, _ = session.compile_train_step(made)
    counted = compiled.cost_analysis()["flops"]
    # Element-wise work on parameters, which a batch of 8 does not dwarf.
    optimizer = 20 * made.n_params
    assert counted - optimizer < 1.05 * 8 * made.objective.flops
    assert counted > 0.98 * 8 * made.objective.flops


def test_all_seeds_share_one_program():
    one, other = (open_tiny("microbatch_size=16", f"seed={seed}") for seed in (1, 2**32 - 1))
    texts = [session.lower_train_step(made).as_text() for made in (one, other)]
    assert texts[0] == texts[1]

    data = np.repeat(batches(1), 2, axis=0)
    assert losses(one, data)[0] != losses(other, data)[0]

"""Span corruption in the train step, held to the same as masked language modelling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.config.resolve import get_config
from cramjax.errors import UserError
from cramjax.parallel import mesh as meshes
from cramjax.training import session
from cramjax.training.evaluate import Evaluator
from cramjax.training.state import initial_state
from tests.stepping import batches, losses, one_device, open_tiny, shared_tiny

# 32 inputs are 34 tokens of text, 5 of them noise in 2 spans, and 8 targets.
N_RAW, N_TARGETS = 34, 8


def open_t5(*overrides, devices=1):
    overrides = ("microbatch_size=16", *overrides)
    if devices == 1:
        return shared_tiny(*overrides, recipe="t5_1day")
    return open_tiny(*overrides, recipe="t5_1day", devices=devices)


def texts(n):
    return batches(n, length=N_RAW)


@pytest.fixture(scope="module")
def whole():
    return losses(open_t5(), texts(4))


@pytest.mark.slow
def test_rows_are_exactly_as_long_as_fills_the_inputs():
    objective = open_t5().objective
    assert (objective.row_tokens, objective.n_predicted) == (N_RAW, N_TARGETS)
    inputs, targets = objective.preview(jax.random.key(0), jnp.asarray(texts(1)[0]), jnp.arange(16))
    assert inputs.shape == (16, 32) and targets.shape == (16, N_TARGETS)
    # Sentinels from the top of the vocabulary, the end of sequence at both ends.
    assert np.all(np.sort(inputs, axis=1)[:, -2:] == [62, 63]) and np.all(targets[:, 0] == 63)
    assert np.all(inputs[:, -1] == 1) and np.all(targets[:, -1] == 1)


@pytest.mark.slow
def test_it_learns_and_starts_at_chance(whole):
    # Dear, because it takes 60 steps; a run of a T5 learns in the tests from end to end. A gradient
    # of the wrong sign or of another position's label passes every test of shapes and equality;
    # only learning shows it.
    assert abs(whole[0][0] - np.log(64)) < 1.0
    values, _ = losses(open_t5(), np.repeat(texts(1), 60, axis=0), lr=2e-2)
    assert values[-1] < values[0] - 0.5


@pytest.mark.slow
def test_accumulation_equals_the_big_batch(whole):
    values, _ = losses(open_tiny("microbatch_size=4", recipe="t5_1day"), texts(4))
    np.testing.assert_allclose(values, whole[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_every_mesh_gives_the_losses_of_one_device(whole, mesh):
    overrides = [f"mesh.{axis}={size}" for axis, size in zip(meshes.AXES, mesh, strict=True)]
    values, state = losses(open_t5(*overrides, devices=8), texts(4))
    np.testing.assert_allclose(values, whole[0], rtol=2e-5)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
@pytest.mark.parametrize("relative_step", [False, True])
def test_adafactor_trains(relative_step):
    made = open_t5("optimizer.name=adafactor", f"optimizer.relative_step={relative_step}")
    lr = 3.0 if relative_step else 3e-2
    values, _ = losses(made, np.repeat(texts(1), 40, axis=0), lr=lr)
    assert values[-1] < values[0] - 0.2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_narrow_formats_train_to_the_loss_of_float32(precision):
    data = np.repeat(texts(1), 30, axis=0)
    wide, _ = losses(open_t5(), data)
    narrow, state = losses(open_t5(f"precision={precision}"), data)
    assert abs(np.mean(narrow[-5:]) - np.mean(wide[-5:])) < 0.1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_evaluation_is_the_same_whatever_corruption_training_uses():
    plain = open_t5()
    heavy = open_t5(
        "objective.noise_density=0.3", "objective.mean_span=2.0", "objective.z_loss=0.1"
    )
    params = initial_state(plain.objective, plain.optimizer, False, plain.abstract, 0).params
    tokens, weights = texts(1)[0], np.ones(16, np.float32)
    assert heavy.objective.eval_row_tokens == N_RAW and heavy.objective.row_tokens != N_RAW
    results = [
        Evaluator(made.objective, made.mesh, [(tokens, weights)])(params) for made in (plain, heavy)
    ]
    assert results[0] == results[1]
    half = np.where(np.arange(16) < 8, weights, 0.0).astype(np.float32)
    assert Evaluator(plain.objective, plain.mesh, [(tokens, half)])(params).loss != results[0].loss


def test_unigram_loss_is_that_of_the_best_constant_distribution():
    made = open_t5()
    data = texts(40).reshape(-1, N_RAW)
    counts = np.bincount(data.ravel(), minlength=64)
    shares = made.objective.frequencies(counts)
    assert shares.sum() == pytest.approx(1.0) and shares[62] == shares[63] == pytest.approx(
        1 / N_TARGETS
    )
    batch = data[:512], np.ones(512, np.float32)
    loss = Evaluator(made.objective, made.mesh, [batch]).unigram_loss(counts)
    # 5 of 8 targets are words, uniform over 53 of them; the others are 2 sentinels and the end.
    entropy = 5 / 8 * np.log(53 * 8 / 5) + 3 / 8 * np.log(8)
    assert loss == pytest.approx(entropy, abs=0.02)


def test_too_few_sentinels_are_refused():
    config = get_config("t5_1day:smoke", "data.source=prepared:elsewhere", "data.seq_len=512")
    with one_device(), pytest.raises(UserError, match="8 sentinels and 512 input tokens take 28"):
        session.open_session(config, session.AssumedVocabulary(vocab_size=64, extra_ids=8))


@pytest.mark.slow
def test_the_program_does_little_more_than_the_products_of_the_model():
    overrides = (
        "model.n_layers=2", "model.n_decoder_layers=3", "data.vocab_size=4096", "batch_size=8",
        "microbatch_size=8",
        "precision=float32", "eval.batch_size=8", "data.seq_len=256",
    )  # fmt: skip
    with one_device():
        made = session.open_session(
            get_config("t5_1day", *overrides),
            session.AssumedVocabulary(vocab_size=4096, extra_ids=100),
        )
        compiled, _ = session.compile_train_step(made)
    counted = compiled.cost_analysis()["flops"]
    optimizer = (
        20 * made.n_params
    )  # element-wise work on parameters, which a batch of 8 does not dwarf
    assert counted - optimizer < 1.05 * 8 * made.objective.flops
    assert counted > 0.98 * 8 * made.objective.flops

"""Replaced-token detection: its formula, what is differentiated, and a run from end to end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cramjax
from cramjax.checkpoints import pretrained
from cramjax.config.resolve import get_config
from cramjax.errors import UserError
from cramjax.models import detector, encoder, network
from cramjax.models.layers import FLOAT32
from cramjax.objectives import families, masking, replaced_tokens
from cramjax.training import session
from cramjax.training.session import AssumedVocabulary
from cramjax.tuning import footprint
from tests.e2e import test_main as cli
from tests.growth.test_growing_run import Stop
from tests.stepping import COMMON, batches, losses, one_device

N_ROWS, SEQ_LEN, VOCAB_SIZE = 4, 32, 64
SMALL = (
    *COMMON,
    "model.n_layers=1",
    "model.n_heads=4",
    "model.dropout=0",
    "model.attention_dropout=0",
    "model.unroll=1",
    "objective.mask_rate=0.25",
)


@pytest.fixture(scope="module")
def objective():
    config = get_config("electra_1day", *SMALL)
    return families.build(config, AssumedVocabulary(vocab_size=VOCAB_SIZE), FLOAT32)


@pytest.fixture(scope="module")
def batch(objective):
    """Parameters, key, tokens and row numbers."""
    params = network.init_params(objective.network, jax.random.key(1))
    tokens = np.random.default_rng(0).integers(5, VOCAB_SIZE, (N_ROWS, SEQ_LEN))
    return params, jax.random.key(2), jnp.asarray(tokens), jnp.arange(N_ROWS, dtype=jnp.int32)


def test_the_generator_shares_all_embeddings(objective):
    generator = network.abstract_params(objective.network)["generator"]
    assert "embeddings" not in generator["encoder"] and "projection" in generator
    assert objective.network.generator.d_model == 8  # a quarter of 32, one head of four
    # The model that is kept has no generator.
    kept = network.abstract_params(objective.network.discriminator())
    assert sorted(kept) == ["encoder", "head"]


def test_the_loss_is_that_of_both_networks(objective, batch):
    params, key, tokens, rows = batch
    (total, weight), gradients = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(*batch)

    @jax.jit
    def generated(params):
        masked, hidden, _ = objective.masked(params, key, tokens, rows)
        logits = detector.generator_logits(objective.network, FLOAT32, params, hidden)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), masked.labels[..., None], -1)
        head = detector.generator_head_params(params)
        sampled = objective.sampled(head, jax.random.fold_in(key, 2), hidden, rows)
        return masked.positions, picked, sampled

    positions, picked, sampled = map(np.asarray, generated(params))
    read = np.array(tokens)
    for row in range(N_ROWS):
        read[row, positions[row]] = sampled[row]
    replaced = read != np.asarray(tokens)

    def detection(params):
        states = encoder.encode(objective.network, FLOAT32, params, jnp.asarray(read))
        odds = detector.detect(objective.network, FLOAT32, params, states)
        nats = jnp.where(replaced, jax.nn.softplus(-odds), jax.nn.softplus(odds))
        return nats.mean()

    found, of_detection = jax.jit(jax.value_and_grad(detection))(params)
    assert weight == N_ROWS * 8
    np.testing.assert_allclose(total / weight, -picked.mean() + 50 * found, rtol=1e-5)

    # The generator learns from its own loss alone, and the blocks of the model from theirs.
    nothing = jax.tree.map(jnp.zeros_like, of_detection["generator"])
    jax.tree.map(np.testing.assert_array_equal, of_detection["generator"], nothing)
    expected = jax.tree.map(lambda leaf: 50 * weight * leaf, of_detection["encoder"]["layers"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        gradients["encoder"]["layers"],
        expected,
    )
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["generator"]["head"]))


def test_a_sample_that_is_the_original_is_no_replacement():
    masked = masking.MaskedBatch(
        inputs=jnp.array([[7, 4, 4, 9, 3]]),  # 4 is [MASK]
        positions=jnp.array([[1, 2, 3, 4]]),
        labels=jnp.array([[8, 6, 9, 3]]),
        weights=jnp.array([[1.0, 1.0, 1.0, 0.0]]),  # a special token fills up the count
    )
    tokens = jnp.array([[7, 8, 6, 9, 3]])
    filled, replaced = replaced_tokens.with_samples(masked, tokens, jnp.array([[8, 5, 9, 50]]))
    assert filled.tolist() == [[7, 8, 5, 9, 3]]
    assert replaced.tolist() == [[False, False, True, False, False]]


def test_held_out_positions_are_those_of_masked_language_modelling(objective, batch):
    params, _, tokens, rows = batch
    sums = jax.jit(objective.evaluate)(params, tokens, rows, jnp.array([1.0, 1.0, 1.0, 0.0]))
    plain_config = get_config("electra_1day:control", *SMALL)
    plain = families.build(plain_config, AssumedVocabulary(vocab_size=VOCAB_SIZE), FLOAT32)
    jax.tree.map(
        np.testing.assert_array_equal,
        objective.predicted(tokens, rows),
        plain.predicted(tokens, rows),
    )
    also = sums["also"]
    assert also["weight"] == 3 * SEQ_LEN
    # An untrained generator guesses right once in 64 times.
    assert 0.8 * also["weight"] < also["original"] < 0.95 * also["weight"]
    assert 0 <= also["detection_accuracy"] <= also["weight"]


def test_flops_are_those_of_the_products(objective):
    """Per token: blocks of both, projection, detection head; per prediction: transform, decoder."""
    blocks = 4 * 32 * 32 + 2 * 32 * 64 + 2 * 32 * SEQ_LEN
    small = 4 * 8 * 8 + 2 * 8 * 16 + 2 * 8 * SEQ_LEN
    forward = SEQ_LEN * (blocks + small + 32 * 8 + 32 * 32 + 32) + 8 * (8 * 32 + 32 * VOCAB_SIZE)
    assert objective.flops == 3 * 2 * forward


def test_the_estimate_of_memory_counts_the_generator():
    facts = {"n_targets": 0, "vocab_size": 99, "itemsize": 2, "fused": True}
    state = {"parameters": 0, "optimizer": 0}

    def per_sequence(recipe, *overrides):
        return footprint.step_bytes(get_config(recipe, *overrides), state, 1, **facts)

    alone = per_sequence("electra_1day:control")
    # Activations are in proportion to the width, where no probabilities are kept.
    assert per_sequence("electra_1day") == pytest.approx(1.25 * alone)
    assert per_sequence("electra_1day", "objective.generator_layers=6") == pytest.approx(
        1.125 * alone
    )


def opened(*overrides, devices):
    config = get_config("electra_1day", *SMALL, "optimizer.lr=1", *overrides)
    with one_device() if devices == 1 else np.errstate():
        return session.open_session(config, AssumedVocabulary(vocab_size=VOCAB_SIZE))


@pytest.mark.slow
def test_it_learns_and_several_devices_compute_the_same():
    data = np.repeat(batches(1), 12, axis=0)
    values, _ = losses(opened("microbatch_size=16", devices=1), data)
    assert values[-1] < values[0] - 5
    for mesh in (("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"), ("mesh.data=8",)):
        others, _ = losses(opened("microbatch_size=8", *mesh, devices=8), data[:2])
        np.testing.assert_allclose(others, values[:2], rtol=2e-4)


@pytest.mark.slow
def test_a_batch_in_parts_has_the_same_sum(objective, batch):
    params, key, tokens, rows = batch
    loss = jax.jit(objective.loss)
    whole = loss(*batch)
    parts = [loss(params, key, tokens[part], rows[part]) for part in (slice(0, 2), slice(2, 4))]
    for index in (0, 1):
        np.testing.assert_allclose(sum(part[index] for part in parts), whole[index], rtol=1e-5)


def train(corpus, workdir, *more, sinks=()):
    small = [flag.removeprefix("--config.") for flag in cli.SMALL]
    data = f"data.source=text:{corpus}", f"data.cache_dir={corpus.parent / 'prepared'}"
    steps = ("budget.steps=8", "log.every_steps=1", "data.max_mb=None")
    shallow = ("model.n_layers=1", "model.n_heads=4", "model.unroll=1")
    config = cramjax.get_config("electra_1day", *small, *data, *steps, *shallow, *more)
    return cramjax.train(config, workdir, sinks=sinks)


@pytest.mark.slow
def test_a_run_resumes_exactly_and_keeps_the_discriminator(corpus, tmp_path):
    whole = train(corpus, tmp_path / "whole")
    train(corpus, tmp_path / "stopped", sinks=[Stop(5)])
    resumed = train(corpus, tmp_path / "stopped")
    for key in ("eval_loss", "detection_loss", "detection_accuracy", "original"):
        assert resumed[key] == whole[key]
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert any("detection_accuracy" in json.loads(line) for line in lines)

    model = cramjax.load(tmp_path / "whole")
    assert type(model.config) is detector.DetectorConfig and "generator" not in model.params
    with pytest.raises(UserError, match="finds replaced tokens and predicts no words"):
        cramjax.fill_mask(model, "the [MASK] of it")
    read = pretrained.read(tmp_path / "whole")
    with pytest.raises(UserError, match="finds replaced tokens and has no head that predicts"):
        pretrained.start_from(read, {}, {})


@pytest.mark.parametrize(
    "overrides, problem",
    [
        (["growth.stages=[{'until': 0.5, 'depth': 0.5}]"], "growth.stages: networks of obj"),
        (["init_from=somewhere"], "init_from=somewhere: objective.name=replaced_tokens starts"),
        (["model.head_transform=False"], "model.head_transform=False: the generator of"),
        (["objective.pool=2"], "objective.pool=2: must be 1 where objective.name is replaced"),
        (["objective.name=mlm", "objective.generator_width=0.5"], "needs objective.name=repl"),
        (["objective.causal=True"], "objective.causal=True: objective.name=replaced_tokens"),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides, problem):
    with pytest.raises(UserError, match=problem):
        get_config("electra_1day", *overrides)

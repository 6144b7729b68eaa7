"""A third family of networks, in this file and a line in each registry, trains like the others.

The network is a bag of words: it predicts a masked token from the mean of the row's embeddings.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cramjax
from cramjax.config import families as config_families
from cramjax.models import axes as ax
from cramjax.models import module, network
from cramjax.models.layers import Linear, Precision, product
from cramjax.models.module import param
from cramjax.objectives import families, losses, masking
from cramjax.objectives.objective import eval_key
from cramjax.training import run, session
from cramjax.training.evaluate import Evaluator
from tests.e2e import test_main as cli
from tests.stepping import COMMON, batches, one_device
from tests.stepping import losses as losses_of

FLOAT32 = jnp.dtype(jnp.float32)
RECIPE = """
from cramjax.config import recipes

def get_config(arg=None):
    return recipes.start("bag", "bag")
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagConfig:
    """The numbers of a bag of words (`network.Network`)."""

    family: ClassVar[str] = "bag"

    vocab_size: int
    d_model: int

    max_length: ClassVar[None] = None
    unscaled_norms: ClassVar[tuple[str, ...]] = ()

    def build(self, precision):
        return functools.partial(Bag, self, precision)


class Bag(nnx.Module):
    """Embeddings, their mean, a dense layer, and the transposed embedding."""

    def __init__(self, cfg: BagConfig, precision: Precision, rngs: nnx.Rngs):
        self.precision = precision
        normal = jax.nn.initializers.normal(0.02)
        self.tokens = param(normal, rngs, (cfg.vocab_size, cfg.d_model), (ax.VOCAB, ax.EMBED))
        shape, axes = (cfg.d_model, cfg.d_model), (ax.EMBED, ax.EMBED_OUT)
        common = {"precision": precision, "rngs": rngs}
        self.dense = Linear("te,ef->tf", shape, axes, bias=True, init=normal, **common)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int [rows, length] → float32 [rows, vocab]."""
        embedding = self.tokens[...]
        hidden = jnp.tanh(self.dense(embedding[tokens].mean(axis=1)))  # [rows, embed]
        return product("te,ve->tv", hidden, embedding, self.precision.matmul_dtype, FLOAT32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagOfWords:
    """Predicts masked tokens with a bag of words (`PretrainingObjective`)."""

    network_class: ClassVar[type[BagConfig]] = BagConfig

    network: BagConfig
    precision: Precision
    corruption: masking.Masking
    row_tokens: int

    @classmethod
    def from_config(cls, config, vocabulary, precision):
        special = vocabulary.special_tokens
        corruption = masking.Masking(
            mask_rate=config.objective.mask_rate,
            mask_share=1.0,
            random_share=0.0,
            mask_id=special["mask"],
            special_ids=tuple(sorted(set(special.values()))),
            vocab_size=vocabulary.vocab_size,
        )
        return cls(
            network=BagConfig(vocab_size=vocabulary.vocab_size, d_model=config.model.d_model),
            precision=precision,
            corruption=corruption,
            row_tokens=config.data.seq_len,
        )

    @property
    def n_predicted(self):
        return self.corruption.n_predicted(self.row_tokens)

    @property
    def eval_row_tokens(self):
        return self.row_tokens

    @property
    def row_shape(self):
        return self.row_tokens

    @property
    def eval_row_shape(self):
        return self.row_tokens

    @property
    def flops(self):
        return 6 * self.network.d_model * (self.network.d_model + self.network.vocab_size)

    @property
    def description(self):
        return network.describe(self.network)

    def loss(self, params, key, tokens, rows):
        batch = masking.mask_tokens(self.corruption, key, tokens.astype(jnp.int32), rows)
        logits = self._logits(params, batch)
        return losses.cross_entropy(logits, batch.labels, batch.weights), jnp.sum(batch.weights)

    def evaluate(self, params, tokens, rows, row_weights):
        batch = masking.mask_tokens(self.corruption, eval_key(), tokens.astype(jnp.int32), rows)
        logits = self._logits(params, batch)
        weights = batch.weights * row_weights[:, None]
        hits = jnp.argmax(logits, axis=-1).astype(jnp.int32) == batch.labels
        return {
            "loss": losses.cross_entropy(logits, batch.labels, weights),
            "weight": jnp.sum(weights),
            "correct": jnp.sum(jnp.where(hits, weights, 0.0)),
        }

    def predicted(self, tokens, rows):
        batch = masking.mask_tokens(self.corruption, eval_key(), tokens.astype(jnp.int32), rows)
        return batch.labels, batch.weights

    def frequencies(self, counts):
        smoothed = counts + 1.0
        smoothed[list(self.corruption.special_ids)] = 0.0
        return smoothed / smoothed.sum()

    def preview(self, key, tokens, rows):
        batch = masking.mask_tokens(self.corruption, key, tokens.astype(jnp.int32), rows)
        return batch.inputs, batch.labels

    def _logits(self, params, batch):
        model = module.bind(self.network.build(self.precision), params)
        of_rows = model(batch.inputs)[:, None]  # [rows, 1, vocab]
        return jnp.broadcast_to(of_rows, (*batch.labels.shape, of_rows.shape[-1]))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    keys = config_families.FamilyKeys(
        keys={}, objectives=("mlm",), mistakes=lambda config: iter(())
    )
    monkeypatch.setitem(config_families.FAMILIES, "bag", keys)
    monkeypatch.setitem(families.OBJECTIVES, "bag", BagOfWords)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "bag.py"
    path.write_text(RECIPE)
    return str(path)


def open_bag(recipe, *overrides):
    config = cramjax.get_config(recipe, *COMMON, "budget.steps=20", *overrides)
    return session.open_session(config, session.AssumedVocabulary(vocab_size=64))


def test_its_session_has_parameters_shapes_and_a_plan_of_memory(recipe):
    with one_device():
        opened = open_bag(recipe, "microbatch_size=16")
    assert opened.n_params == 64 * 32 + 32 * 32 + 32
    assert opened.attention == "no"
    assert opened.state_bytes()["parameters"] == 4 * opened.n_params
    assert opened.step_bytes(2) > opened.step_bytes(1) > 12 * opened.n_params


def test_it_learns_the_same_on_one_device_and_on_a_mesh(recipe):
    data = np.repeat(batches(1), 12, axis=0)
    with one_device():
        alone, state = losses_of(open_bag(recipe, "microbatch_size=4"), data)
    sharded, _ = losses_of(open_bag(recipe, "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"), data)
    assert alone[-1] < alone[0] - 0.1
    np.testing.assert_allclose(sharded, alone, rtol=1e-4)
    assert state.params["dense"]["kernel"].shape == (32, 32)


def test_it_is_evaluated_beside_the_unigram_loss(recipe):
    with one_device():
        opened = open_bag(recipe, "microbatch_size=16")
    _, state = losses_of(opened, batches(1))
    evaluator = Evaluator(opened.objective, opened.mesh, [(batches(1)[0], np.ones(16, np.float32))])
    assert evaluator(state.params).loss == pytest.approx(np.log(64), abs=1.0)
    assert evaluator.unigram_loss(np.ones(64, np.int64)) == pytest.approx(np.log(59), abs=0.1)


def test_a_checkpoint_names_its_family(recipe):
    with one_device():
        objective = open_bag(recipe, "microbatch_size=16").objective
    assert objective.description == {"family": "bag", "vocab_size": 64, "d_model": 32}
    assert families.network_of(objective.description) == objective.network


def test_a_run_trains_it_and_can_be_loaded(recipe, corpus, tmp_path):
    flags = [flag.removeprefix("--config.") for flag in cli.SMALL]
    config = cramjax.get_config(
        recipe,
        *flags,
        f"data.source=text:{corpus}",
        f"data.cache_dir={corpus.parent / 'prepared'}",
        "budget.steps=10",
        "eval.every_fraction=0.5",
    )
    summary = run.train(config, tmp_path / "run")
    assert summary["steps"] == 10 and np.isfinite(summary["eval_loss"])
    loaded = cramjax.load(tmp_path / "run")
    assert loaded.config.family == "bag" and loaded.params["dense"]["kernel"].shape[0] == (
        config.model.d_model
    )

"""Every recipe resolves and its train step traces, at full size and as :smoke."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from cramjax.budget import schedules
from cramjax.config.resolve import resolve

RECIPES = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_toy(path):
    config = resolve(f"{path}:smoke")
    assert config.name == f"{path.stem}-smoke" and config.budget.steps <= 100


# Slow tests also train the toys.
TOY = pytest.param(":smoke", marks=pytest.mark.slow, id="smoke")


@pytest.mark.parametrize("variant", [pytest.param("", id="full"), TOY])
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_traces(path, variant):
    from cramjax.training import session
    from cramjax.training.step import make_train_step

    config = resolve(f"{path}{variant}", ["mesh.data=8", "microbatch_size=8", "eval.batch_size=8"])
    assert config.name == path.stem + variant.replace(":", "-")
    vocabulary = session.AssumedVocabulary(
        vocab_size=config.data.vocab_size, extra_ids=config.data.extra_ids
    )
    made = session.open_session(config, vocabulary)
    step = make_train_step(
        made.objective,
        made.optimizer,
        clip_norm=config.optimizer.clip_norm,
        dynamic_scale=False,
    )
    batch = jax.ShapeDtypeStruct((made.max_microbatches, 8, made.objective.row_tokens), jnp.uint16)
    dtypes = (jnp.uint32, jnp.float32, jnp.int32)
    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in dtypes]
    state, metrics = jax.eval_shape(step, made.abstract, batch, *scalars)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), made.abstract
    )
    assert metrics["loss"].dtype == jnp.float32


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_it_is(path):
    text = path.read_text()
    assert f"python -m cramjax.main --config configs/{path.name}" in text
    assert "arXiv" in text
    assert len(text.splitlines()) < 100
    assert "hf:" not in str(resolve(f"{path}:smoke").data.source)  # a smoke run needs no network


def test_crammed_bert_has_the_published_number_of_parameters():
    from cramjax.models import network
    from cramjax.objectives.masked_lm import encoder_config

    config = resolve(str(RECIPES[0].parent / "bert_1day.py"))
    assert network.count_params(encoder_config(config.model, 32768)) == 119_589_889


def test_the_grid_of_train_large_has_every_depth_and_width():
    from cramjax.models.layers import FLOAT32
    from cramjax.objectives import families
    from cramjax.training.session import AssumedVocabulary

    for n_layers in (3, 6, 12, 18, 24):
        for width in (256, 512, 768, 1024, 1536):
            config = resolve(f"bert_train_large:L{n_layers}-H{width}")
            model = config.model
            assert (model.n_layers, model.d_model, model.n_heads) == (n_layers, width, width // 64)
    config = resolve("bert_train_large:L12-H1536+mask15")
    objective = families.build(config, AssumedVocabulary(vocab_size=32768), FLOAT32)
    assert config.model.d_ff == 3072 and objective.n_predicted == 19


def test_the_text_of_24hbert_is_that_of_all_its_cards():
    """Eight cards of 12 GB read 95 million sequences in the day (the authors' own count)."""
    from cramjax.training import text_amount

    config = resolve("bert_24h_academic")
    one, eight = (text_amount.expected(config, "NVIDIA TITAN V", n).tokens for n in (1, 8))
    assert eight == pytest.approx(8 * one) and one < 95e6 * 128 < eight < 2 * 95e6 * 128
    assert config.checkpoint.at_hours == (12.0, 14.4, 21.6)


def rates(config, n_steps, *steps):
    """The learning rate after each of `steps`, in a run of `n_steps` of equal length."""
    schedule, peak = config.schedule, config.optimizer.lr
    return [schedules.learning_rate(schedule, peak, step / n_steps, step) for step in steps]


def test_t5_efficient_is_that_of_its_released_configurations():
    config = resolve("t5_efficient")
    # 1 over the root of the step, of 10,000 at least, whatever the number of steps.
    for n_steps in (80_000, 524_288):
        expected = [1e-2, 1e-2, 5e-3, n_steps**-0.5]
        assert rates(config, n_steps, 1, 10_000, 40_000, n_steps) == pytest.approx(expected)
    assert set(rates(config, 9_000, 1, 5_000, 9_000)) == {1e-2}
    assert config.objective.z_loss == 1e-4
    assert config.data.document_end is False
    assert config.model.dropout == 0.0


def test_t5_1day_is_that_of_nanot5_and_its_adafactor_that_of_t5():
    config = resolve("t5_1day")
    assert rates(config, 80_000, 0, 5_000, 10_000, 80_000) == pytest.approx(
        [1e-2, 1.5e-2, 2e-2, 1e-5]
    )
    assert config.objective.z_loss == 0.0

    own = resolve("t5_1day:adafactor")
    assert rates(own, 80_000, 1, 10_000, 40_000, 80_000) == pytest.approx([1e-2, 1e-2, 5e-3, 0.0])
    assert own.objective.z_loss == 1e-4
    # One dataset for both, so that their losses compare.
    assert own.data == config.data and config.data.document_end


RAMPED = ["bert_1day", "bert_1day_modern", "bert_stack", "bert_stack:control",
          "bert_compoundgrow", "bert_compoundgrow:control", "bert_train_large",
          "bert_train_large:L6-H256"]  # fmt: skip


@pytest.mark.parametrize("recipe", RAMPED)
def test_every_ramp_has_the_stairs_of_cramming(recipe):
    config = resolve(recipe)
    batches = []
    for fraction in (0.0, 0.1, 0.35, 0.59, 0.6):
        for microbatch in (64, 512):
            n = schedules.n_microbatches(config.schedule, fraction, config.batch_size, microbatch)
            batches.append(n * microbatch)
    assert batches[::2] == batches[1::2] == [512, 1536, 5120, 8192, 8192]

"""Every recipe resolves and its train step traces, at full size and as :smoke."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from cramjax.config.resolve import resolve

RECIPES = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("variant", ["", ":smoke"], ids=["full", "smoke"])
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
        seed=config.seed,
        clip_norm=config.optimizer.clip_norm,
        dynamic_scale=False,
    )
    batch = jax.ShapeDtypeStruct((made.max_microbatches, 8, made.objective.row_tokens), jnp.uint16)
    scalars = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
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

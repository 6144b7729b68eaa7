"""Training of seeds: exact where it must be, and it learns."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cramjax.finetuning import training
from cramjax.finetuning.feed import EncoderFeed
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.t5_feed import T5Feed
from cramjax.finetuning.text_to_text import text_to_text
from cramjax.glue import rows
from cramjax.glue.tasks import find_tasks
from cramjax.models.layers import Precision
from tests.finetuning import grammar

PLAIN = Settings(
    lr=3e-3,
    epochs=2,
    batch_size=8,
    dropout=0.0,
    attention_dropout=0.0,
    schedule="constant",
    warmup=0.0,
)


@pytest.fixture(scope="module")
def cola(tmp_path_factory):
    folder = grammar.write_glue(tmp_path_factory.mktemp("glue"), n_train=45)
    (task,) = find_tasks(["cola"])
    return task, rows.open_task(task, str(folder), lambda _: None).splits


@pytest.fixture(scope="module")
def model():
    return grammar.model()


def learn(model, cola, settings, seeds, **options):
    task, splits = cola
    feed = EncoderFeed(task, splits, model.tokenizer, model.special["pad"], settings, None)
    rates = {"dropout": settings.dropout, "attention_dropout": settings.attention_dropout}
    objective = grammar.classifying(model.config, model.precision, **rates)
    scaled = model.precision.matmul_dtype == jnp.float16
    found = training.train(
        feed, objective, settings, model.params, seeds, dynamic_scale=scaled, **options
    )
    return found, feed, objective


def assert_close(one, other, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(model, cola):
    settings = dataclasses.replace(PLAIN, dropout=0.1, attention_dropout=0.1)
    (first, *_), (again, *_), (other, *_) = (
        learn(model, cola, settings, [seed]) for seed in (3, 3, 4)
    )
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)

    assert first.losses == again.losses != other.losses
    assert first.n_steps == 2 * math.ceil(45 / 8)


@pytest.mark.slow
def test_seeds_together_are_the_seeds_alone(model, cola):
    settings = dataclasses.replace(PLAIN, dropout=0.1, max_steps=4)
    together, *_ = learn(model, cola, settings, [0, 5])
    for number, seed in enumerate((0, 5)):
        alone, *_ = learn(model, cola, settings, [seed])
        assert_close(training.of_seed(together.params, number, 2), alone.params)
        assert abs(together.losses[number] - alone.losses[0]) < 1e-5


def test_microbatches_make_the_same_steps(model, cola):
    # Six steps an epoch, the last of which has five examples: a microbatch of four, and one.
    whole, *_ = learn(model, cola, PLAIN, [0])
    parts, *_ = learn(model, cola, dataclasses.replace(PLAIN, microbatch_size=4), [0])
    assert_close(whole.params, parts.params, atol=5e-4)
    assert abs(whole.losses[0] - parts.losses[0]) < 1e-3


def test_like_lengths_take_fewer_places_and_give_what_the_same_batch_gives(model, cola):
    task, splits = cola
    grouping = dataclasses.replace(PLAIN, group_by_length=True)
    feed = EncoderFeed(task, splits, model.tokenizer, model.special["pad"], PLAIN, None)
    # One text of 200 tokens makes all random batches wide.
    long = feed.sequences("train")[0]
    wide = dataclasses.replace(long, ids=np.resize(long.ids, 200), types=np.zeros(200, int))
    feed._take({"train": [wide, *feed.sequences("train")[1:]]})

    def places(settings):
        batches = training._batches(feed, settings, [0], 6)
        return sum(batch["tokens"].size for batch in batches)

    assert places(grouping) < places(PLAIN)

    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    objective = grammar.classifying(model.config, model.precision, **rates)
    params = objective.init(jax.random.key(0), model.params)
    losses = []
    for fitted in (False, True):
        plan = feed.plan([1, 2, 3, 4], fitted=fitted)
        batch = feed.arrays(plan, plan.need, 8)
        losses.append(objective.loss(params, jax.random.key(1), batch, np.zeros(1, np.int32))[0])
    assert abs(losses[0] - losses[1]) < 1e-5


def test_an_encoder_learns_and_predictions_are_in_order(model, cola):
    task, splits = cola
    found, feed, objective = learn(model, cola, dataclasses.replace(PLAIN, epochs=25, lr=5e-3), [1])
    outputs = training.predict(objective, found.params, feed.eval_batches("validation"))
    predictions = feed.predictions("validation", outputs)
    labels = [row["label"] for row in splits["validation"]]

    assert np.mean(np.equal(predictions, labels)) > 0.9
    assert not any(found.diverged)


@pytest.mark.slow
def test_float16_with_a_loss_scale_learns_as_well(model, cola):
    narrow = Precision(activation_dtype=jnp.dtype("float16"), matmul_dtype=jnp.dtype("float16"))
    settings = dataclasses.replace(PLAIN, epochs=8)
    half, *_ = learn(dataclasses.replace(model, precision=narrow), cola, settings, [1])
    full, *_ = learn(model, cola, settings, [1])
    assert not any(half.diverged)
    assert abs(half.losses[0] - full.losses[0]) < 0.1


def test_the_best_epoch_is_kept(model, cola):
    offered = []

    def headline(_, params):
        offered.append(jax.tree.map(np.asarray, params))
        return {1: 5.0, 2: 9.0, 3: 9.0}[len(offered)]

    settings = dataclasses.replace(PLAIN, epochs=3, select="best")
    found, *_ = learn(model, cola, settings, [0], headline=headline)

    assert found.epoch == [2]

    jax.tree.map(np.testing.assert_array_equal, found.params, offered[1])


def test_a_run_that_diverges_says_so_and_ends(model, cola):
    broken = dataclasses.replace(
        model, params=jax.tree.map(lambda leaf: leaf * np.nan, model.params)
    )
    reported = []
    settings = dataclasses.replace(PLAIN, epochs=40)
    found, *_ = learn(
        broken, cola, settings, [0], report=lambda step, n_steps, loss: reported.append(step)
    )

    assert found.diverged == [True]
    assert reported[-1] < found.n_steps == 240


def test_a_shape_compiles_once_for_tasks_and_seeds(model, tmp_path):
    folder, announced = str(grammar.write_glue(tmp_path)), []
    settings = dataclasses.replace(PLAIN, b2=0.95, epochs=1)
    for name in ("rte", "stsb"):
        (task,) = find_tasks([name])
        splits = rows.open_task(task, folder, lambda _: None).splits
        for seed in (0, 1):
            learn(
                model,
                (task, splits),
                settings,
                [seed],
                compiling=lambda name=name: announced.append(name),
            )

    # Pairs of as many words: classes or a score, the program is the same.
    assert set(announced) == {"rte"}
    assert len(announced) <= 2


@pytest.mark.slow
def test_a_t5_learns_the_words_of_labels(tmp_path):
    model = grammar.model("t5")
    (task,) = find_tasks(["cola"])
    splits = rows.open_task(task, str(grammar.write_glue(tmp_path)), lambda _: None).splits
    settings = Settings(
        lr=1e-2,
        epochs=60,
        batch_size=16,
        microbatch_size=8,
        dropout=0.0,
        attention_dropout=0.0,
        schedule="linear",
    )
    feed = T5Feed(task, splits, model.tokenizer, model.special, settings)
    options = {
        "special": model.special,
        "vocab_size": model.tokenizer.get_vocab_size(),
        "max_target": feed.max_target,
    }
    objective = text_to_text(
        model.config, model.precision, dropout=0.0, attention_dropout=0.0, **options
    )
    found = training.train(feed, objective, settings, model.params, [0], dynamic_scale=False)
    untrained = feed.predictions(
        "validation", training.predict(objective, model.params, feed.eval_batches("validation"))
    )

    assert feed.n_illegal["validation"] == len(untrained) == 24

    predictions = feed.predictions(
        "validation", training.predict(objective, found.params, feed.eval_batches("validation"))
    )
    labels = [row["label"] for row in splits["validation"]]

    assert feed.n_illegal["validation"] == 0
    assert np.mean(np.equal(predictions, labels)) > 0.9

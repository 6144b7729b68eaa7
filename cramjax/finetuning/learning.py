"""A model before a task: its examples as batches, the functions that learn them, and what it scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.finetuning import results, training
from cramjax.finetuning.classification import Classification, classification
from cramjax.finetuning.feed import EncoderFeed, Feed
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.t5_feed import T5Feed
from cramjax.finetuning.text_to_text import text_to_text
from cramjax.glue import metrics
from cramjax.glue.tasks import Row, Task
from cramjax.hub import equivalence
from cramjax.hub.families import FAMILIES
from cramjax.inference import LoadedModel
from cramjax.models import kernels
from cramjax.tuning import attention_choice

Splits = Mapping[str, list[Row]]


def open_task(
    model: LoadedModel,
    task: Task,
    splits: Splits,
    settings: Settings,
    announce: Callable[[str], None],
) -> tuple[Feed, Any]:
    """The examples of a task as `model` reads them, and the functions that learn them (`Classification` or `TextToText`).

    On a GPU the kernel of an encoder's attention is the fastest one there, which `announce` is told about.
    """
    splits = dict(splits)
    if settings.max_train and len(splits.get("train", ())) > settings.max_train:
        # The same sample for every seed.
        chosen = np.random.default_rng(0).choice(
            len(splits["train"]), settings.max_train, replace=False
        )
        splits["train"] = [splits["train"][number] for number in sorted(chosen)]
    rates = {"dropout": settings.dropout, "attention_dropout": settings.attention_dropout}
    if model.is_t5:
        feed = T5Feed(task, splits, model.tokenizer, model.special, settings)
        options = {
            "special": model.special,
            "vocab_size": model.tokenizer.get_vocab_size(),
            "max_target": feed.max_target,
        }
        return feed, text_to_text(model.config, model.precision, **options, **rates)
    feed = EncoderFeed(
        task, splits, model.tokenizer, model.special["pad"], settings, model.config.max_length
    )
    head = {"pooling": settings.pooling, "width": settings.head_width}
    if settings.head == "stock" and (family := equivalence.export_family(model.config)):
        head |= {"width": None, "transform": FAMILIES[family].transform}
    learner = classification(model.config, model.precision, **head, **rates)
    return feed, _with_fastest_attention(learner, feed, model.params, settings, announce)


def _with_fastest_attention(
    learner: Classification,
    feed: EncoderFeed,
    trained: Any,
    settings: Settings,
    announce: Callable[[str], None],
) -> Classification:
    """`learner` with the kernels that are fastest for a batch of `feed`."""
    precision = learner.precision
    if not precision.on_gpu or not feed.n_train:
        return learner
    size = settings.microbatch_size or settings.batch_size
    plan = feed.plan(range(min(size, feed.n_train)))
    batch = feed.arrays(plan, plan.need, size)

    key = jax.random.key(0)
    params = jax.eval_shape(learner.init, key, trained)
    with kernels.noting() as calls:
        jax.eval_shape(learner.loss, params, key, batch, jnp.arange(size, dtype=jnp.int32))
    chosen = attention_choice.fastest(calls, precision, announce)
    return dataclasses.replace(
        learner, precision=dataclasses.replace(precision, kernels=tuple(chosen.items()))
    )


def score(
    task: Task, splits: Splits, feed: Feed, learner: Any, params: Any
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Metrics in percent, and predictions by split; test splits have predictions only."""
    scores, predictions = {}, {}
    for split in splits:
        if split == "train":
            continue
        outputs = training.predict(learner, params, feed.eval_batches(split))
        predictions[split] = feed.predictions(split, outputs)
        if split in task.splits:
            scores |= results.metric_names(
                metrics.score(task, splits[split], predictions[split]), split
            )
    return scores, predictions


def describe(task: Task, settings: Settings, seed: int) -> dict[str, Any]:
    """What a finetuned model notes of how it was made."""
    return {
        "task": task.name,
        "suite": task.suite,
        "labels": task.labels,
        "settings": dataclasses.asdict(settings),
        "seed": seed,
    }

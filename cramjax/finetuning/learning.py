"""A model before a task: its examples as batches, the functions that learn them, and what it scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cramjax.benchmarks import metrics
from cramjax.benchmarks.tasks import Row, Task
from cramjax.finetuning import results, training
from cramjax.finetuning.classification import classification
from cramjax.finetuning.feed import EncoderFeed, Feed
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.t5_feed import T5Feed
from cramjax.finetuning.text_to_text import text_to_text
from cramjax.hub import equivalence
from cramjax.hub.families import FAMILIES
from cramjax.inference import LoadedModel

Splits = Mapping[str, list[Row]]


def open_task(model: LoadedModel, task: Task, splits: Splits, settings: Settings) -> tuple[Feed, Any]:
    """The examples of a task as `model` reads them, and the functions that learn them (`Classification` or `TextToText`)."""
    splits = dict(splits)
    if settings.max_train and len(splits.get("train", ())) > settings.max_train:
        # The same sample for every seed.
        chosen = np.random.default_rng(0).choice(len(splits["train"]), settings.max_train, replace=False)
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
    limit = model.config.max_positions if model.config.positions == "learned" else None
    feed = EncoderFeed(task, splits, model.tokenizer, model.special["pad"], settings, limit)
    head = {"pooling": settings.pooling, "width": settings.head_width}
    if settings.head == "stock" and (family := equivalence.exports(model.config)):
        head |= {"width": None, "transform": FAMILIES[family].transform}
    return feed, classification(model.config, model.precision, **head, **rates)


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
            scores |= results.metric_names(metrics.score(task, splits[split], predictions[split]), split)
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

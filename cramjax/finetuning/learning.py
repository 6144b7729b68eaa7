"""Brings a model and a task together: examples as batches, the objective, and scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cramjax.finetuning import training
from cramjax.finetuning.classification import EncoderObjective, dropping
from cramjax.finetuning.feed import Feed, PackedFeed
from cramjax.finetuning.heads import check, encoder_part, head_of
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.t5_feed import T5Feed
from cramjax.finetuning.text_to_text import TextToText, text_to_text
from cramjax.glue.tasks import Row, Task
from cramjax.hub import equivalence
from cramjax.hub.families import FAMILIES
from cramjax.inference import LoadedModel
from cramjax.models import classifier, encoder, kernels, t5
from cramjax.models.detector import DetectorConfig
from cramjax.objectives.objective import FinetuningObjective
from cramjax.tasks import catalogue, metric_names
from cramjax.tuning import attention_choice

Splits = Mapping[str, list[Row]]


def open_task(
    model: LoadedModel,
    task: Task,
    splits: Splits,
    settings: Settings,
    announce: Callable[[str], None],
) -> tuple[Feed, FinetuningObjective]:
    """Returns the examples of a task as `model` reads them, and the objective that learns them.

    The objective is that of the task's head (`heads.HEADS`), or a `TextToText`. On a GPU an
    encoder's attention runs by the kernel that is fastest there, and `announce` receives the
    choice.

    Raises:
        UserError: if the model cannot have the head of the task.
    """
    check(task, model.is_t5)
    splits = dict(splits)
    if settings.max_train and len(splits.get("train", ())) > settings.max_train:
        splits["train"] = _sampled(splits["train"], settings.max_train)
    if isinstance(model.config, t5.T5Config):
        return _open_t5(model, model.config, task, splits, settings)
    return _open_encoder(model, model.config, task, splits, settings, announce)


def _sampled(rows: list[Row], n: int) -> list[Row]:
    """Returns `n` of the rows in their order; every seed gets the same sample."""
    chosen = np.random.default_rng(0).choice(len(rows), n, replace=False)
    return [rows[number] for number in sorted(chosen)]


def _open_t5(
    model: LoadedModel, config: t5.T5Config, task: Task, splits: Splits, settings: Settings
) -> tuple[T5Feed, TextToText]:
    feed = T5Feed(task, splits, model.tokenizer, model.special, settings)
    objective = text_to_text(
        config,
        model.precision,
        special=model.special,
        vocab_size=model.n_token_rows,
        unused=model.unused_ids,
        max_target=feed.max_target,
        dropout=settings.dropout,
        attention_dropout=settings.attention_dropout,
    )
    return feed, objective


def _open_encoder(
    model: LoadedModel,
    config: encoder.EncoderConfig,
    task: Task,
    splits: Splits,
    settings: Settings,
    announce: Callable[[str], None],
) -> tuple[PackedFeed, EncoderObjective]:
    if isinstance(config, DetectorConfig):
        config = config.without_head()
    part = encoder_part(task)
    pad_id = model.special["pad"]
    feed = part.feed(task, splits, model.tokenizer, pad_id, settings, config.max_length)
    for note in feed.notes:
        announce(f"{task.folder}: {note}")
    network = network_with_head(config, task, settings)
    objective = part.objective(network, model.precision)
    return feed, _with_fastest_attention(objective, feed, model.params, settings, announce)


def network_with_head(
    config: encoder.EncoderConfig, task: Task, settings: Settings
) -> classifier.ClassifierConfig:
    """Returns the network that `settings` finetune for a task."""
    part = encoder_part(task)
    kind = part.network
    # The stock head is that of the transformers class the network exports to, if there is one.
    width, transform = settings.head_width, "pooler"
    family = equivalence.export_family(config)
    if settings.head == "stock" and family:
        width, transform = None, FAMILIES[family].transform_of(kind)
    if kind != classifier.SEQUENCE and transform == "pooler":
        # A pooler reads whole sequences; BERT has no transform of tokens.
        width, transform = None, "none"

    return classifier.ClassifierConfig(
        encoder=dropping(config, settings.dropout, settings.attention_dropout),
        width=width or config.d_model,
        n_outputs=part.n_outputs(task),
        dropout=settings.dropout,
        pooling=settings.pooling,
        transform=transform,
        head=kind,
    )


def _with_fastest_attention(
    objective: EncoderObjective,
    feed: PackedFeed,
    trained: Any,
    settings: Settings,
    announce: Callable[[str], None],
) -> EncoderObjective:
    """Returns `objective` with the kernels that are fastest for a batch of `feed`."""
    precision = objective.precision
    if not precision.on_gpu or not feed.n_train:
        return objective
    size = settings.microbatch_size or settings.batch_size
    plan = feed.plan(range(min(size, feed.n_train)))
    batch = feed.arrays(plan, plan.need, size)

    # A trace without computation tells which calls of attention there are.
    key = jax.random.key(0)
    params = jax.eval_shape(objective.init, key, trained)
    with kernels.noting() as calls:
        jax.eval_shape(objective.loss, params, key, batch, jnp.arange(size, dtype=jnp.int32))
    chosen = attention_choice.fastest(calls, precision, announce)
    precision = dataclasses.replace(precision, owns_rows=True, kernels=tuple(chosen.items()))
    return dataclasses.replace(objective, precision=precision)


def score(
    task: Task, splits: Splits, feed: Feed, objective: FinetuningObjective, params: Any
) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Returns metrics in percent, and predictions by split.

    Test splits have predictions only.
    """
    scores: dict[str, float] = {}
    predictions: dict[str, list[Any]] = {}
    for split, rows in splits.items():
        if split == "train":
            continue
        outputs = training.predict(objective, params, feed.eval_batches(split))
        predictions[split] = feed.predictions(split, outputs)
        if split in task.splits:
            split_scores = head_of(task).score(task, rows, predictions[split])
            scores |= metric_names.of_split(task, split_scores, split)
    return scores, predictions


def describe(task: Task, settings: Settings, seed: int) -> dict[str, Any]:
    """Returns what a finetuned model notes about its making."""
    described = catalogue.notes(task)
    described |= {"settings": settings.describe(), "seed": seed}
    part = head_of(task).encoder
    if part and part.network != classifier.SEQUENCE:
        described["head"] = part.network
    return described

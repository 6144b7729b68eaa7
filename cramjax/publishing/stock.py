"""Turns a model of this project into the one that a stock class of `transformers` holds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tokenizers

from cramjax.checkpoints import packed
from cramjax.data import tokenizers as tokenizer_files
from cramjax.files import read_json
from cramjax.glue.tasks import Task
from cramjax.hub import families, sentence_files
from cramjax.inference import LoadedModel
from cramjax.models import classifier, encoder, lowrank
from cramjax.tasks import catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class StockModel:
    """A network with the head that it was trained for.

    Attributes:
        config: the network.
        params: float32 NumPy arrays in the tree of its `init_params`.
        labels: the names of a classifier's outputs; () for embeddings, None for other heads.
        tokenizer: gives a text the special tokens that it had in training.
        max_length: tokens at which a text should be cut.
        sentence: the files of `sentence_transformers`, for embeddings.
    """

    config: families.Config
    params: dict[str, Any]
    labels: tuple[str, ...] | None
    tokenizer: tokenizers.Tokenizer
    max_length: int
    sentence: sentence_files.SentenceModel | None = None


def stock_model(folder: pathlib.Path, model: LoadedModel) -> StockModel:
    """Returns the `model` that was loaded from `folder` as a class of `transformers` holds it."""
    model = _without_factors(model)
    max_length = _max_length(folder, model)
    if not model.finetuned or model.is_t5:
        # A finetuned T5 answers in text: its head is the one it had before.
        return StockModel(
            config=model.config,
            params=jax.tree.map(np.asarray, model.params),
            labels=None,
            tokenizer=model.tokenizer,
            max_length=max_length,
        )

    task = catalogue.noted_task(model.finetuned)
    settings = model.finetuned["settings"]
    head = model.finetuned.get("head", classifier.SEQUENCE)
    labels = _labels(task, head)
    config, params = _classifier(model, head, len(labels), settings)
    tokenizer = model.tokenizer
    if settings["single_as_pair"] and len(task.fields) == 1:
        tokenizer = tokenizer_files.with_empty_second(tokenizer)
    sentence = None
    if head == classifier.EMBEDDING:
        max_length = min(max_length, settings["max_length"])
        sentence = sentence_files.SentenceModel(pooling=config.pooling, max_length=max_length)
    return StockModel(
        config=config,
        params=params,
        labels=labels,
        tokenizer=tokenizer,
        max_length=max_length,
        sentence=sentence,
    )


def _without_factors(model: LoadedModel) -> LoadedModel:
    """Returns `model` with each pair of low-rank factors multiplied: no class has factors."""
    if not model.config.ffn_rank:
        return model
    config = dataclasses.replace(model.config, ffn_rank=0)
    return dataclasses.replace(model, config=config, params=lowrank.merged(model.params))


def _classifier(
    model: LoadedModel, kind: str, n_outputs: int, settings: Mapping[str, Any]
) -> tuple[classifier.ClassifierConfig, dict[str, Any]]:
    """Returns the classifier that `settings` finetuned from an encoder, and its parameters.

    Args:
        model: the finetuned model.
        kind: `ClassifierConfig.head`.
        n_outputs: outputs that the task has.
        settings: of the finetuning.
    """
    params = jax.tree.map(np.asarray, model.params)
    head = params.get("classifier", {})
    transform = "none"
    if "dense" in head:
        transform = "prediction" if "norm" in head else "pooler"
    assert isinstance(model.config, encoder.EncoderConfig)
    width = model.config.d_model
    if head:
        width = head["out"]["kernel"].shape[0]
    network = dataclasses.replace(
        model.config, dropout=settings["dropout"], attention_dropout=settings["attention_dropout"]
    )
    config = classifier.ClassifierConfig(
        encoder=network,
        width=width,
        n_outputs=n_outputs,
        dropout=settings["dropout"],
        pooling=settings["pooling"],
        transform=transform,
        head=kind,
    )

    if not head:
        return config, params
    # Finetuning uses one head for all tasks. The outputs beyond this task's classes are untrained.
    out = {name: leaf[..., :n_outputs] for name, leaf in head["out"].items()}
    return config, params | {"classifier": head | {"out": out}}


def _labels(task: Task, head: str) -> tuple[str, ...]:
    """Returns the name of each output of the classifier for `task`; an embedding has none."""
    if head == classifier.EMBEDDING:
        return ()
    if head == classifier.SPAN:
        return ("start", "end")
    if task.n_classes == 1:
        return ("score",)
    if task.kind in ("classification", "answers", "tags") and task.labels:
        return task.labels
    return ("no", "yes")


def _max_length(folder: pathlib.Path, model: LoadedModel) -> int:
    """Returns the number of tokens of a text that the model has seen, or has positions for."""
    config = model.config
    if isinstance(config, encoder.EncoderConfig):
        # Rotary positions, and none at all, have no end.
        if config.positions in ("learned", "scaled_sinusoidal"):
            return config.max_positions
    if model.finetuned:
        return model.finetuned["settings"]["max_length"]
    if packed.is_packed(folder):
        return packed.read_index(folder)["max_length"]
    return read_json(folder / "config.json", "restore the file")["data"]["seq_len"]

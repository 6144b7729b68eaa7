"""Predicts with a finetuned model: rows of a file one after the other, or texts from Python.

A model is one that `tools.finetune --save` wrote, a compressed one of these, or a directory of
`transformers` with a head for sequences, tokens or answers, or of embeddings. Any encoder embeds
texts.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cramjax import inference
from cramjax.checkpoints import pretrained
from cramjax.console import silent
from cramjax.errors import UserError
from cramjax.finetuning import learning, training
from cramjax.finetuning.embedding_feed import EmbeddingFeed
from cramjax.finetuning.feed import EncoderFeed, Feed
from cramjax.finetuning.protocols import Settings
from cramjax.finetuning.tag_feed import TagFeed
from cramjax.glue.tasks import OTHER, Row, Task
from cramjax.hub import directory
from cramjax.inference import LoadedModel
from cramjax.models import classifier, encoder
from cramjax.objectives.objective import FinetuningObjective
from cramjax.tasks import catalogue, retrieval, tags

CHUNK = 1024
"""Rows that are read, sorted by length and predicted at once."""

_SPLIT = "predict"
_READ_ALONE = frozenset({"wic", "wsc"})
"""Tasks whose rows say more than their texts."""

_KINDS = {
    classifier.TOKEN: "tags",
    classifier.SPAN: "span",
    classifier.EMBEDDING: "embeddings",
}
_LONGEST = 512
"""Tokens of a text that an encoder reads which nobody finetuned, if it has so many positions."""


def load_finetuned(path: str | os.PathLike) -> LoadedModel:
    """Returns a finetuned model, ready for use on the first device.

    Args:
        path: as for `inference.load`.

    Raises:
        UserError: if there is no model, or it is not finetuned.
    """
    place = pretrained.locate(os.path.expanduser(path))
    if directory.is_hf_directory(place):
        return _from_hf(place)
    model = inference.load(place)
    if model.finetuned is None:
        raise UserError(
            f"{path}: is not finetuned; give a folder that tools.finetune --save wrote, or a model "
            "of transformers with a head"
        )
    return model


def _from_hf(place: Any) -> LoadedModel:
    """Returns a model of `transformers` with its head, as one that we finetuned."""
    imported = directory.read_head(place)
    config = imported.config
    kind = _KINDS.get(config.head, "classification")
    if config.head == classifier.SEQUENCE and config.n_outputs == 1:
        kind = "regression"

    params = imported.params
    fields = ("question", "context") if kind == "span" else ("text",)
    labels = imported.labels if kind in ("classification", "tags") else None
    task = _stock_task(place.name, kind, fields, labels)
    max_length = imported.max_length or _LONGEST
    settings = Settings(lr=1.0, max_length=max_length, pooling=config.pooling)
    if kind != "embeddings":
        network = learning.network_with_head(config.encoder, task, settings)
        out = params["classifier"]["out"]
        n_more = network.n_outputs - config.n_outputs
        for name, leaf in out.items():
            # Heads for sequences have at least three outputs here.
            out[name] = np.pad(leaf, ((0, 0),) * (leaf.ndim - 1) + ((0, n_more),))

    model = inference.on_device(config.encoder, params, imported.tokenizer)
    described = learning.describe(task, settings, 0)
    if imported.normalize:
        described["normalize"] = True
    return dataclasses.replace(model, finetuned=described)


def _stock_task(
    name: str, kind: str, fields: tuple[str, ...], labels: tuple[str, ...] | None = None
) -> Task:
    """Returns the task of a model that says only what kind of head it has."""
    return Task(
        suite=OTHER,
        name=name,
        folder=name,
        tfds="",
        fields=fields,
        labels=labels,
        metrics=(),
        headline=(),
        sizes={},
        kind=kind,
    )


class Predictor:
    """Predicts rows of the task that a model is finetuned for.

    Attributes:
        task: the task.
        has_odds: whether a prediction has "no_answer".
        width: of an embedding; None for other heads.
    """

    def __init__(self, model: LoadedModel, n_texts: int | None = None):
        """Takes a finetuned model.

        Args:
            model: as from `load_finetuned`.
            n_texts: texts of a row, for a model that does not say; None for what its task has.

        Raises:
            UserError: for a model whose task has other rows than texts, or takes other texts.
        """
        if model.finetuned is None:
            raise UserError(
                "this model is not finetuned; load one that tools.finetune --save wrote"
            )
        self.task = catalogue.noted_task(model.finetuned)

        if self.task.kind in ("choice", "answers", "entities") or self.task.name in _READ_ALONE:
            raise UserError(
                f"a model of {self.task.name} reads more than texts; predict its test set with "
                "tools.finetune --submission"
            )
        self._model = model
        self._settings = Settings(**model.finetuned["settings"])
        if n_texts and n_texts != len(self.task.fields):
            self._take_texts(n_texts)
        self.has_odds = self.task.kind == "span" and not model.is_t5
        self.width = None
        if isinstance(model.config, encoder.EncoderConfig) and self.task.kind == "embeddings":
            self.width = model.config.d_model
        self._normalizes = bool(model.finetuned.get("normalize"))
        self._opened: tuple[Feed, FinetuningObjective] | None = None

    def _take_texts(self, n_texts: int) -> None:
        """Reads one text or two with a model of `transformers`, which does not say how many."""
        is_stock = self.task.fields == ("text",) and self.task.kind in (
            "classification",
            "regression",
        )
        if not is_stock or n_texts > 2:
            raise UserError(
                f"{n_texts} columns, but a row of {self.task.name} has "
                f"{len(self.task.fields)} texts ({', '.join(self.task.fields)})"
            )
        self.task = dataclasses.replace(self.task, fields=("text", "text_pair"))

    def predict(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        """Yields a prediction for each row, in order; memory does not grow with the rows.

        Keys are "label" and "score" (a probability) for classes, "score" for a regression, "words"
        and "tags" for tags, "answer", "score" and "no_answer" for answers (the score of no answer
        less that of the text), "embedding" (float32 [width]) for embeddings, "text" for text. A T5
        has no "score" beside a label or an answer, and no "no_answer"; a label or a score that it
        does not write is None.

        Args:
            rows: with the fields of `task`.
        """
        rows = iter(rows)
        while chunk := list(itertools.islice(rows, CHUNK)):
            yield from self._predict(chunk)

    def _predict(self, rows: list[Row]) -> Iterator[dict[str, Any]]:
        feed, objective = self._open(rows)
        outputs = training.predict(objective, self._model.params, feed.eval_batches(_SPLIT))
        if isinstance(feed, EncoderFeed):
            yield from self._classes(feed.scores(_SPLIT, outputs))
        elif isinstance(feed, EmbeddingFeed):
            vectors = feed.vectors(_SPLIT, outputs)
            if self._normalizes:
                vectors = retrieval.unit(vectors)
            yield from ({"embedding": vector} for vector in vectors)
        elif isinstance(feed, TagFeed):
            found = feed.predictions(_SPLIT, outputs)
            for row, guessed in zip(rows, found, strict=True):
                if tags.are_entities(guessed):
                    guessed = tags.as_iob2(guessed)
                yield {"words": row["words"], "tags": guessed}
        else:
            yield from self._texts(feed, outputs)

    def _open(self, rows: list[Row]) -> tuple[Feed, FinetuningObjective]:
        """Returns the rows as the model reads them; its tokenizer is made ready once."""
        splits = {_SPLIT: rows}
        if self._opened is None:
            self._opened = learning.open_task(
                self._model, self.task, splits, self._settings, silent
            )
        else:
            self._opened[0].read(splits)
        return self._opened

    def _classes(self, scores: np.ndarray) -> Iterator[dict[str, Any]]:
        labels = self.task.labels
        if labels is None:
            for row_scores in scores:
                yield {"score": float(row_scores[0])}
            return
        for row_scores in scores[:, : len(labels)]:
            shares = np.exp(row_scores - row_scores.max())
            shares /= shares.sum()
            best = int(shares.argmax())
            yield {"label": labels[best], "score": float(shares[best])}

    def _texts(self, feed: Feed, outputs: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
        for found in feed.predictions(_SPLIT, outputs):
            if self.task.kind == "span":
                numbers = {key: value for key, value in found.items() if key != "text"}
                yield {"answer": found["text"]} | numbers
            elif self.task.kind == "text":
                yield {"text": found}
            elif self.task.labels:
                # A T5 may write what is no label.
                yield {"label": None if found is None else self.task.labels[found]}
            else:
                yield {"score": found}


def words_of(text: str) -> list[tuple[str, int]]:
    """Returns the words of a text with their first characters.

    Words stand between spaces; punctuation at their ends stands alone, as tagged corpora have it.
    """
    words: list[tuple[str, int]] = []
    start = 0
    for part in text.split():
        start = text.index(part, start)
        first, last = 0, len(part)
        while first < last and _is_punctuation(part[first]):
            words.append((part[first], start + first))
            first += 1
        tail = []
        while last > first and _is_punctuation(part[last - 1]):
            last -= 1
            tail.append((part[last], start + last))
        if first < last:
            words.append((part[first:last], start + first))
        words.extend(reversed(tail))
        start += len(part)
    return words


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def classify(model: LoadedModel, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, Any]]:
    """Returns {"label", "score"} for each of `texts`, or {"score"} for a regression.

    Args:
        model: finetuned for scores of texts (`load_finetuned`).
        texts: texts, or pairs of texts.

    Raises:
        UserError: if the model has another head, or takes another number of texts.
    """
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if not rows:
        return []
    predictor = Predictor(model, len(rows[0]))
    _check_kind(predictor, ("classification", "regression"), "classify")
    fields = predictor.task.fields
    return list(predictor.predict([dict(zip(fields, row, strict=True)) for row in rows]))


def embed(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    normalize: bool = False,
    max_length: int | None = None,
) -> np.ndarray:
    """Returns the embeddings of `texts`, float32 [texts, d_model], in their order.

    An embedding is the mean of the last hidden states of a text's tokens, special tokens included,
    or what the model was finetuned for (`pooling`). The texts are put into batches by their length.

    Args:
        model: an encoder: finetuned for embeddings (`load_finetuned`), or any other, whose
            embeddings are worth less.
        texts: any number of texts.
        normalize: give each embedding the length 1, so that a product of two is their cosine.
        max_length: tokens at which a text is cut; None for those of the finetuning, or for the
            positions of the model, 512 at most.

    Raises:
        UserError: for a T5, or a text in place of a list of texts.
    """
    if isinstance(texts, str):
        raise UserError("embed: takes a list of texts; put the text in brackets")
    if not isinstance(model.config, encoder.EncoderConfig):
        raise UserError("embed: this model is a T5, which has no embeddings; take an encoder")

    predictor = Predictor(_embedding_model(model, model.config, max_length))
    found = np.empty((len(texts), model.config.d_model), np.float32)
    for number, row in enumerate(predictor.predict({"text": text} for text in texts)):
        found[number] = row["embedding"]
    return retrieval.unit(found) if normalize else found


def _embedding_model(
    model: LoadedModel, config: encoder.EncoderConfig, max_length: int | None
) -> LoadedModel:
    """Returns the model with notes that make it one of embeddings."""
    finetuned = model.finetuned
    if finetuned is None or finetuned.get("head") != classifier.EMBEDDING:
        settings = Settings(lr=1.0, pooling="mean", max_length=min(config.max_positions, _LONGEST))
        if finetuned:
            settings = dataclasses.replace(settings, max_length=finetuned["settings"]["max_length"])
        task = _stock_task("embeddings", "embeddings", ("text",))
        finetuned = learning.describe(task, settings, 0)
    if max_length is not None:
        finetuned = finetuned | {"settings": finetuned["settings"] | {"max_length": max_length}}
    return dataclasses.replace(model, finetuned=finetuned)


def answer(model: LoadedModel, question: str, context: str) -> dict[str, Any]:
    """Returns {"answer", "score", "no_answer"}: the piece of `context` that answers best.

    Args:
        model: finetuned for answers (`load_finetuned`).
        question: the question.
        context: the text with the answer; long ones are read in windows.

    Raises:
        UserError: if the model has another head.
    """
    predictor = Predictor(model)
    _check_kind(predictor, ("span",), "answer")
    (found,) = predictor.predict([{"question": question, "context": context}])
    return found


def entities(model: LoadedModel, text: str) -> list[dict[str, Any]]:
    """Returns {"type", "text", "start", "end"} of the entities in a text, in order.

    `text[start:end]` is the entity.

    Args:
        model: finetuned for tags of entities (`load_finetuned`).
        text: the text.

    Raises:
        UserError: if the model has another head.
    """
    predictor = Predictor(model)
    _check_kind(predictor, ("tags",), "entities")
    words = words_of(text)
    if not words:
        return []
    (found,) = predictor.predict([{"words": [word for word, _ in words]}])
    results = []
    for kind, first, last in tags.entities(found["tags"]):
        start = words[first][1]
        end = words[last][1] + len(words[last][0])
        results.append({"type": kind, "text": text[start:end], "start": start, "end": end})
    return results


def _check_kind(predictor: Predictor, kinds: Sequence[str], name: str) -> None:
    if predictor.task.kind not in kinds:
        raise UserError(
            f"{name}: this model is finetuned for {predictor.task.name}, which is of another kind "
            f"({predictor.task.kind})"
        )

"""Turns pairs and triples of texts into batches, and embeddings into cosines and places.

A text is read alone. Texts lie packed side by side in rows and do not see each other, so that an
embedding is that of its text alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from cramjax.errors import UserError
from cramjax.finetuning import packing
from cramjax.finetuning.feed import Arrays, MicrobatchPlan, PackedFeed, encoded, truncating
from cramjax.finetuning.protocols import Settings
from cramjax.glue.tasks import Row, Task
from cramjax.tasks import retrieval

_CHUNK = 1000
"""Texts that are tokenised at once: what the tokenizer returns is large."""


class EmbeddingFeed(PackedFeed):
    """Feeds an encoder with texts; an example of training is a pair or a triple of them.

    Training rows have "texts": the anchor, its positive and perhaps a hard negative. Rows of
    evaluation have "texts", two of them, and perhaps a "label". Rows of a prediction have a "text".
    Evaluation embeds each text once, however many rows have it.
    """

    def __init__(
        self,
        task: Task,
        splits: Mapping[str, list[Row]],
        tokenizer: tokenizers.Tokenizer,
        pad_id: int,
        settings: Settings,
        max_positions: int | None,
    ):
        """Tokenises all texts; arguments are those of `feed.EncoderFeed`.

        Raises:
            UserError: if `max_length` leaves no room, or a batch of pairs has one pair.
        """
        super().__init__(pad_id)
        self._name = task.folder
        self._cutting = truncating(tokenizer, settings.fitting(max_positions))
        self._as_pair = settings.single_as_pair
        self._scale = np.asarray(settings.scale, np.float32)
        self._size = settings.microbatch_size or settings.batch_size
        self.read(splits)

    def read(self, splits: Mapping[str, list[Row]]) -> None:
        """Tokenises other rows in place of those before."""
        self._numbers: dict[str, np.ndarray] = {}  # int32 [rows, texts of a row]
        self._has_labels = {split: _has_labels(rows) for split, rows in splits.items()}
        sequences: dict[str, list[packing.Encoded]] = {}
        for split, rows in splits.items():
            known: dict[str, int] = {}
            numbers = []
            for row in rows:
                numbers.append([known.setdefault(text, len(known)) for text in _texts(row)])
            self._numbers[split] = np.asarray(numbers, np.int32)
            sequences[split] = list(self._encode(list(known)))
        if "train" in splits:
            # Those of an example are side by side, and the arrays of a text that recurs are shared.
            distinct = sequences["train"]
            sequences["train"] = [distinct[number] for number in self._numbers["train"].flat]
        self._take(sequences)

        self.n_train = len(splits.get("train", ()))
        if self.n_train and self._size == 1 and self._n_columns() == 2:
            raise UserError(
                f"{self._name}: a batch of one pair has no negatives; give batch_size and "
                "microbatch_size of 2 or more, or a third column of hard negatives"
            )

    def _n_columns(self) -> int:
        """Returns the texts of a training row."""
        return self._numbers["train"].shape[1]

    def _encode(self, texts: Sequence[str]) -> Iterator[packing.Encoded]:
        """Yields the tokens of each text."""
        for start in range(0, len(texts), _CHUNK):
            part: list[Any] = list(texts[start : start + _CHUNK])
            if self._as_pair:
                part = [(text, "") for text in part]
            for encoding in self._cutting.encode_batch(part):
                yield encoded(encoding)

    def plan(self, examples: Sequence[int], *, fitted: bool = False) -> MicrobatchPlan:
        """Returns what the texts of the training `examples` need; it numbers texts."""
        n = self._n_columns()
        texts = [n * example + i for example in examples for i in range(n)]
        return super().plan(texts, fitted=fitted)

    def arrays(self, plan: MicrobatchPlan, need: tuple[int, ...], size: int) -> Arrays:
        """Returns a batch of `size` examples, as `classification.Embedding` describes it."""
        return super().arrays(plan, need, size * self._n_columns())

    def _targets(self, split: str, plan: MicrobatchPlan, batch: Arrays) -> Arrays:
        n_texts = len(batch["first"])
        if split != "train":
            # Single texts: nothing is to be told apart.
            return {"texts": np.zeros((n_texts, 1), np.int32), "scale": self._scale}
        n = self._n_columns()
        examples = np.asarray(plan.examples[::n], int) // n
        texts = np.full((n_texts // n, n), -1, np.int32)
        texts[: len(examples)] = self._numbers["train"][examples]
        weights = (np.arange(len(texts)) < len(examples)).astype(np.float32)
        return {"texts": texts, "weights": weights, "scale": self._scale}

    def _lay_out(self, split: str) -> list[MicrobatchPlan]:
        """Returns batches of texts by length; a single one has no more rows than it needs."""
        plans = super()._lay_out(split)
        if len(plans) == 1:
            # One question to a search engine should not take the time of a full batch.
            (plan,) = plans
            n_rows, length = plan.need
            need = (min(n_rows, packing.row_count(packing.n_rows(plan.places))), length)
            return [MicrobatchPlan(examples=plan.examples, need=need, places=plan.places)]
        return plans

    def vectors(self, split: str, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the embedding of the first text of each row, float32 [rows, width]."""
        return self._distinct(split, outputs)[self._numbers[split][:, 0]]

    def _distinct(self, split: str, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the embeddings of the distinct texts, float32 [texts, width]."""
        found = np.empty((len(self._sequences[split]), outputs[0].shape[1]), np.float32)
        for plan, output in zip(self._layout(split), outputs, strict=True):
            found[list(plan.examples)] = output[: len(plan.examples)]
        return found

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """Returns {"cosine"} of each row, and "rank" for pairs without labels.

        The rank is the place of the second text in a search for it (`retrieval.ranks`).
        """
        units = retrieval.unit(self._distinct(split, outputs))
        pairs = self._numbers[split]
        cosines = retrieval.cosines(units, pairs).tolist()
        if self._has_labels[split]:
            return [{"cosine": cosine} for cosine in cosines]
        places = retrieval.ranks(units, pairs).tolist()
        return [
            {"cosine": cosine, "rank": place} for cosine, place in zip(cosines, places, strict=True)
        ]


def _texts(row: Row) -> Sequence[str]:
    return row["texts"] if "texts" in row else (row["text"],)


def _has_labels(rows: Sequence[Row]) -> bool:
    return bool(rows) and "label" in rows[0]

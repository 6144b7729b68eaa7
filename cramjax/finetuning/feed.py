"""Turns rows of a task into batches of arrays, and outputs into predictions, for an encoder.

Training and evaluation use the `Feed` protocol. `t5_feed.py` has the feed of a T5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers

from cramjax.errors import UserError
from cramjax.finetuning import packing
from cramjax.finetuning.classification import N_OUTPUTS
from cramjax.finetuning.protocols import Settings
from cramjax.glue import inputs
from cramjax.glue.tasks import Row, Task

EVAL_TOKENS = 4096
"""Tokens in a batch of evaluation."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicrobatchPlan:
    """Examples of a microbatch and the shape they need.

    Attributes:
        need: the smallest shape that holds the examples, in the feed's own terms.
        places: (row, offset) of each sequence, for a feed that packs.
    """

    examples: Sequence[int]
    need: tuple[int, ...]
    places: list[tuple[int, int]] = dataclasses.field(default_factory=list)


class Feed(Protocol):
    """The tokenised examples of a task, as batches.

    `plan` says which shape a microbatch needs, and `arrays` builds it at least that large, so that
    several microbatches can share a shape.

    Attributes:
        n_train: number of training examples.
        n_illegal: split → predictions that were no answer; empty if outputs always are.
    """

    n_train: int
    n_illegal: dict[str, int]

    def plan(self, examples: Sequence[int]) -> MicrobatchPlan:
        """Returns what the training `examples` (numbers below `n_train`) need."""
        ...

    def arrays(self, plan: MicrobatchPlan, need: tuple[int, ...], size: int) -> Arrays:
        """Returns the batch of a plan, filled up to `size` examples with some of weight 0."""
        ...

    def eval_batches(self, split: str) -> list[Arrays]:
        """Returns all examples of a split as batches."""
        ...

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """Returns a prediction for each row of the split, from the outputs for its batches."""
        ...


class EncoderFeed:
    """Feeds an encoder with texts and pairs of texts, packed side by side."""

    def __init__(
        self,
        task: Task,
        splits: Mapping[str, list[Row]],
        tokenizer: tokenizers.Tokenizer,
        pad_id: int,
        settings: Settings,
        max_positions: int | None,
    ):
        """Tokenises all examples.

        Args:
            splits: rows by split, with "train" among them if the task is to be trained.
            max_positions: positions of the model; None means no limit.
        """
        self._task = task
        self._pad_id = pad_id
        self._rows = splits
        limit = min(settings.max_length, max_positions or settings.max_length)
        self._tokenizer = truncating(tokenizer, limit)
        self._as_pair = settings.single_as_pair
        self.n_choices = 2 if task.kind == "choice" else 1
        self.n_illegal: dict[str, int] = {}

        self._samples: dict[str, list[inputs.Sample]] = {}
        self._sequences: dict[str, list[packing.Encoded]] = {}
        self._layouts: dict[str, list[MicrobatchPlan]] = {}
        for split, rows in splits.items():
            self._samples[split] = []
            for row in rows:
                self._samples[split].extend(inputs.samples(task, row))
            self._sequences[split] = self._encode(self._samples[split])

        self.n_train = len(self._samples.get("train", ()))
        longest = max(max(self._lengths(split), default=0) for split in splits)
        self._length = packing.row_length(longest)

    def _encode(self, samples: Sequence[inputs.Sample]) -> list[packing.Encoded]:
        """Returns the tokens of all texts of `samples`, choices side by side."""
        texts: list[Any] = []
        for sample in samples:
            for first, second in sample.pairs:
                if second is not None:
                    texts.append((first, second))
                elif self._as_pair:
                    texts.append((first, ""))
                else:
                    texts.append(first)

        sequences = []
        for encoding in self._tokenizer.encode_batch(texts):
            ids = np.asarray(encoding.ids, np.int32)
            token_types = np.asarray(encoding.type_ids, np.int32)
            sequences.append(packing.Encoded(ids=ids, types=token_types))
        return sequences

    def sequences(self, split: str) -> list[packing.Encoded]:
        """Returns the encoded sequences of a split in order, the choices of an example in a row."""
        return self._sequences[split]

    def _lengths(self, split: str) -> list[int]:
        return [len(sequence.ids) for sequence in self._sequences[split]]

    def _sequences_of(self, split: str, examples: Sequence[int]) -> list[packing.Encoded]:
        """Returns the sequences of `examples`, choices side by side."""
        sequences = []
        for example in examples:
            start = example * self.n_choices
            sequences.extend(self._sequences[split][start : start + self.n_choices])
        return sequences

    def _place(self, split: str, examples: Sequence[int]) -> list[tuple[int, int]]:
        """Returns (row, offset) of each sequence of `examples`."""
        lengths = [len(sequence.ids) for sequence in self._sequences_of(split, examples)]
        return packing.place(lengths, self._length)

    def plan(self, examples: Sequence[int]) -> MicrobatchPlan:
        """Returns the number of rows that the sequences need."""
        places = self._place("train", examples)
        n_rows = packing.row_count(packing.n_rows(places))
        return MicrobatchPlan(examples=examples, need=(n_rows,), places=places)

    def arrays(self, plan: MicrobatchPlan, need: tuple[int, ...], size: int) -> Arrays:
        """Returns a batch as `classification.Classification` describes it."""
        return self._arrays("train", plan, need, size)

    def _arrays(self, split: str, plan: MicrobatchPlan, need: tuple[int, ...], size: int) -> Arrays:
        sequences = self._sequences_of(split, plan.examples)
        batch = packing.pack(sequences, plan.places, need[0], self._length, self._pad_id)
        # Missing examples read row 0 and have weight 0.
        n_missing = (size - len(plan.examples)) * self.n_choices
        batch["first"] = np.pad(batch["first"], (0, n_missing))

        labels = [self._samples[split][example].label for example in plan.examples]
        values = np.zeros(size, np.float32)
        values[: len(labels)] = [0 if label is None else label for label in labels]

        is_regression = self._task.kind == "regression"
        if is_regression:
            classes = np.zeros(size, np.int32)
        else:
            classes = values.astype(np.int32)
        return batch | {
            "labels": classes,
            "targets": values,
            "weights": (np.arange(size) < len(labels)).astype(np.float32),
            "classes": np.arange(N_OUTPUTS) < self._n_outputs(),
            "regression": np.float32(is_regression),
        }

    def _n_outputs(self) -> int:
        """Returns how many outputs of the head the task uses; choices are scored side by side."""
        if self._task.kind == "choice" and self._task.labels:
            return len(self._task.labels)
        return self._task.n_classes

    def eval_batches(self, split: str) -> list[Arrays]:
        """Returns packed batches of one shape; the last one has fewer examples and as many rows."""
        if split not in self._layouts:
            self._layouts[split] = self._lay_out(split)
        return [
            self._arrays(split, plan, plan.need, self._eval_size()) for plan in self._layouts[split]
        ]

    def _eval_size(self) -> int:
        """Returns the upper limit on examples in a batch of evaluation.

        It depends on the number of choices alone, so that tasks share a program.
        """
        return EVAL_TOKENS // packing.MIN_SHARE // 4 // self.n_choices

    def _lay_out(self, split: str) -> list[MicrobatchPlan]:
        """Returns batches of examples by length, each full in rows or in examples."""
        n_rows = max(1, EVAL_TOKENS // self._length)
        lengths = np.asarray(self._lengths(split), int).reshape(-1, self.n_choices)
        shares = np.maximum(lengths, packing.MIN_SHARE).sum(axis=1)  # [examples]
        # The longest first; a stable sort keeps the order of the file among equals.
        order = np.argsort(-lengths.max(axis=1, initial=0), kind="stable").tolist()

        plans = []
        start = 0
        while start < len(order):
            # As many examples as fit by their tokens; rows with holes hold fewer.
            used = np.cumsum(shares[order[start : start + self._eval_size()]])
            stop = start + max(1, int(np.searchsorted(used, n_rows * self._length, side="right")))
            places = self._place(split, order[start:stop])
            while packing.n_rows(places) > n_rows and stop - start > 1:
                stop -= max(1, (stop - start) // 16)
                places = self._place(split, order[start:stop])

            need = (max(n_rows, packing.n_rows(places)),)
            plans.append(MicrobatchPlan(examples=order[start:stop], need=need, places=places))
            start = stop
        return plans

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """Returns a prediction for each row, from float [examples, N_OUTPUTS] of each batch."""
        scores = np.zeros((len(self._samples[split]), N_OUTPUTS), np.float32)
        for plan, output in zip(self._layouts[split], outputs, strict=True):
            scores[list(plan.examples)] = output[: len(plan.examples)]

        predictions = []
        start = 0
        for row in self._rows[split]:
            # ReCoRD has one example for each entity.
            n_samples = len(row["entities"]) if self._task.kind == "entities" else 1
            row_scores = scores[start : start + n_samples]
            predictions.append(inputs.decide(self._task, row, row_scores))
            start += n_samples
        return predictions


def truncating(tokenizer: tokenizers.Tokenizer, limit: int) -> tokenizers.Tokenizer:
    """Returns a copy that cuts texts to `limit` tokens, the longer of two texts first.

    Raises:
        UserError: for a limit that leaves no room beside the special tokens.
    """
    copy = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    n_special = copy.num_special_tokens_to_add(True)
    if limit <= n_special:
        raise UserError(f"max_length={limit}: leaves no room beside {n_special} special tokens")
    copy.no_padding()
    copy.enable_truncation(limit, strategy="longest_first")
    return copy

"""From rows of a task to arrays of batches and back to predictions, for an encoder.

Training and evaluation see a `Feed`: `t5_feed.py` has the one of a T5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers

from cramjax.errors import UserError
from cramjax.finetuning import packing
from cramjax.finetuning.classification import N_OUTPUTS
from cramjax.finetuning.protocols import Settings
from cramjax.glue import inputs
from cramjax.glue.tasks import Row, Task

# Tokens of a batch of evaluation.
EVAL_TOKENS = 4096
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Examples of a microbatch, the shape they need at least, and what `arrays` wants to know again."""

    examples: Sequence[int]
    need: tuple[int, ...]
    places: list[tuple[int, int]] = dataclasses.field(default_factory=list)


class Feed(Protocol):
    """The examples of a task, tokenised. Shapes: `plan` says what a microbatch needs, `arrays` makes it at least that large."""

    n_train: int

    def plan(self, examples: Sequence[int]) -> Plan:
        """What the training `examples` (numbers below `n_train`) need."""

    def arrays(self, plan: Plan, need: tuple[int, ...], size: int) -> Arrays:
        """The batch of a plan, filled up to `size` examples with some of weight 0."""

    def eval_batches(self, split: str) -> list[Arrays]:
        """All examples of a split."""

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """A prediction for each row of the split, from what the model made of its batches."""


class EncoderFeed:
    """Pairs of texts packed side by side."""

    def __init__(
        self,
        task: Task,
        splits: dict[str, list[Row]],
        tokenizer: tokenizers.Tokenizer,
        pad_id: int,
        settings: Settings,
        max_positions: int | None,
    ):
        """`splits`: rows by split, "train" among them unless nothing is trained; `max_positions`: what the model can tell apart."""
        self._task, self._pad_id, self._rows = task, pad_id, splits
        limit = min(settings.max_length, max_positions or settings.max_length)
        self._tokenizer = truncating(tokenizer, limit)
        self._as_pair = settings.single_as_pair
        self._samples: dict[str, list[inputs.Sample]] = {}
        self._sequences: dict[str, list[packing.Encoded]] = {}
        self._layouts: dict[str, list[Plan]] = {}
        for split, rows in splits.items():
            self._samples[split] = [sample for row in rows for sample in inputs.samples(task, row)]
            pairs = [pair for sample in self._samples[split] for pair in sample.pairs]
            self._sequences[split] = self._encode(pairs)
        self.n_train = len(self._samples.get("train", ()))
        longest = max(
            len(sequence.ids) for sequences in self._sequences.values() for sequence in sequences
        )
        self._length = packing.row_length(longest)
        self.n_choices = 2 if task.kind == "choice" else 1

    def _encode(self, pairs: Sequence[tuple[str, str | None]]) -> list[packing.Encoded]:
        texts = [(a, b) if b is not None else ((a, "") if self._as_pair else a) for a, b in pairs]
        encodings = self._tokenizer.encode_batch(texts)
        return [
            packing.Encoded(
                ids=np.asarray(found.ids, np.int32), types=np.asarray(found.type_ids, np.int32)
            )
            for found in encodings
        ]

    def sequences(self, split: str) -> list[packing.Encoded]:
        """Returns the encoded sequences of a split in order, the choices of an example in a row."""
        return self._sequences[split]

    def _of(self, split: str, examples: Sequence[int]) -> list[packing.Encoded]:
        """Sequences of examples, choices side by side."""
        k = self.n_choices
        return [
            self._sequences[split][example * k + choice]
            for example in examples
            for choice in range(k)
        ]

    def plan(self, examples: Sequence[int]) -> Plan:
        """Rows the sequences need."""
        places = packing.place(
            [len(sequence.ids) for sequence in self._of("train", examples)], self._length
        )
        return Plan(
            examples=examples, need=(packing.row_count(packing.n_rows(places)),), places=places
        )

    def arrays(self, plan: Plan, need: tuple[int, ...], size: int) -> Arrays:
        """As `classification.Classification` wants a batch."""
        return self._arrays("train", plan, need, size)

    def _arrays(self, split: str, plan: Plan, need: tuple[int, ...], size: int) -> Arrays:
        batch = packing.pack(
            self._of(split, plan.examples), plan.places, need[0], self._length, self._pad_id
        )
        missing = (size - len(plan.examples)) * self.n_choices
        batch["first"] = np.pad(batch["first"], (0, missing))
        labels = [self._samples[split][example].label for example in plan.examples]
        values = np.zeros(size, np.float32)
        values[: len(labels)] = [0 if label is None else label for label in labels]
        regression = self._task.kind == "regression"
        n_classes = len(self._task.labels) if self._task.kind == "choice" else self._task.n_classes
        return batch | {
            "labels": np.zeros(size, np.int32) if regression else values.astype(np.int32),
            "targets": values,
            "weights": (np.arange(size) < len(labels)).astype(np.float32),
            "classes": np.arange(N_OUTPUTS) < n_classes,
            "regression": np.float32(regression),
        }

    def eval_batches(self, split: str) -> list[Arrays]:
        """Packed batches of one shape; the last one has fewer examples and as many rows."""
        return [
            self._arrays(split, plan, plan.need, self._eval_size())
            for plan in self._layouts.setdefault(split, self._lay_out(split))
        ]

    def _eval_size(self) -> int:
        """Examples a batch of evaluation holds at most; a function of the row length alone, so that tasks share a program."""
        return EVAL_TOKENS // packing.MIN_SHARE // 4 // self.n_choices

    def _lay_out(self, split: str) -> list[Plan]:
        """Examples by length into batches that are full in rows or in examples."""
        rows, size = max(1, EVAL_TOKENS // self._length), self._eval_size()
        k = self.n_choices
        lengths = [len(sequence.ids) for sequence in self._sequences[split]]
        order = sorted(
            range(len(lengths) // k),
            key=lambda example: -max(lengths[example * k : example * k + k]),
        )
        plans, start = [], 0
        while start < len(order):
            # As many examples as fit: a guess by their tokens, less where rows are left with holes.
            stop = start
            room = rows * self._length
            while stop < len(order) and stop - start < size:
                room -= sum(
                    max(lengths[order[stop] * k + choice], packing.MIN_SHARE) for choice in range(k)
                )
                if room < 0:
                    break
                stop += 1
            while True:
                chosen = order[start:stop]
                places = packing.place(
                    [len(sequence.ids) for sequence in self._of(split, chosen)], self._length
                )
                if packing.n_rows(places) <= rows or stop - start == 1:
                    break
                stop -= max(1, (stop - start) // 16)
            plans.append(
                Plan(examples=chosen, need=(max(rows, packing.n_rows(places)),), places=places)
            )
            start = stop
        return plans

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """From float [examples, N_OUTPUTS] of each batch."""
        scores = np.zeros((len(self._samples[split]), N_OUTPUTS), np.float32)
        for plan, output in zip(self._layouts[split], outputs, strict=True):
            scores[list(plan.examples)] = output[: len(plan.examples)]
        found, at = [], 0
        for row in self._rows[split]:
            n = len(row["entities"]) if self._task.kind == "entities" else 1
            found.append(inputs.decide(self._task, row, scores[at : at + n]))
            at += n
        return found


def truncating(tokenizer: tokenizers.Tokenizer, limit: int) -> tokenizers.Tokenizer:
    """A copy that cuts what is over `limit` tokens, from the longer of two texts.

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

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
        shares_rows: whether several examples are packed in a row.
        n_illegal: split → predictions that were no answer; empty if outputs always are.
    """

    n_train: int
    shares_rows: bool
    n_illegal: dict[str, int]

    def read(self, splits: Mapping[str, list[Row]]) -> None:
        """Tokenises other rows in place of those before."""
        ...

    def train_lengths(self) -> np.ndarray:
        """Returns the tokens of each training example: int [n_train]."""
        ...

    def plan(self, examples: Sequence[int], *, fitted: bool = False) -> MicrobatchPlan:
        """Returns what the training `examples` (numbers below `n_train`) need.

        With `fitted`, the shape is that of these examples, not one that all batches may share.
        """
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


class PackedFeed:
    """Feeds an encoder with examples of one or several sequences, packed side by side.

    A subclass has the texts and labels of a kind of head: `read`, `_targets` and `predictions`.

    Attributes:
        notes: sentences about rows that are not read in full.
    """

    shares_rows = True

    def __init__(self, pad_id: int, n_choices: int = 1):
        """Takes what all rows share; `read` takes the rows.

        Args:
            pad_id: the token behind the last sequence of a row.
            n_choices: sequences of an example.
        """
        self._pad_id = pad_id
        self._sequences: Mapping[str, list[packing.Encoded]] = {}
        self._layouts: dict[str, list[MicrobatchPlan]] = {}
        self._length = 0
        self.n_choices = n_choices
        self.n_illegal: dict[str, int] = {}
        self.notes: list[str] = []
        self.n_train = 0

    def read(self, splits: Mapping[str, list[Row]]) -> None:
        """Tokenises other rows in place of those before."""
        raise NotImplementedError

    def _take(self, sequences: Mapping[str, list[packing.Encoded]]) -> None:
        """Takes the encoded sequences of each split, the choices of an example in a row."""
        self._sequences = sequences
        self._layouts = {}
        self.n_train = len(sequences.get("train", ())) // self.n_choices
        longest = max(max(self._lengths(split), default=0) for split in sequences)
        self._length = packing.row_length(longest)

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

    def train_lengths(self) -> np.ndarray:
        """Returns the tokens of all sequences of each training example: int [n_train]."""
        return np.asarray(self._lengths("train"), int).reshape(self.n_train, -1).sum(axis=1)

    def plan(self, examples: Sequence[int], *, fitted: bool = False) -> MicrobatchPlan:
        """Returns the rows that the sequences need, and their length."""
        lengths = [len(sequence.ids) for sequence in self._sequences_of("train", examples)]
        length = self._length
        if fitted:
            length = packing.fitted_length(max(lengths, default=0))
        places = packing.place(lengths, length)
        n_rows = packing.row_count(packing.n_rows(places))
        return MicrobatchPlan(examples=examples, need=(n_rows, length), places=places)

    def arrays(self, plan: MicrobatchPlan, need: tuple[int, ...], size: int) -> Arrays:
        """Returns a batch as the objective of the head describes it."""
        return self._arrays("train", plan, need, size)

    def _arrays(self, split: str, plan: MicrobatchPlan, need: tuple[int, ...], size: int) -> Arrays:
        sequences = self._sequences_of(split, plan.examples)
        n_rows, length = need
        batch = packing.pack(sequences, plan.places, n_rows, length, self._pad_id)
        # Missing examples read row 0 and have weight 0.
        n_missing = (size - len(plan.examples)) * self.n_choices
        batch["first"] = np.pad(batch["first"], (0, n_missing))
        weights = (np.arange(size) < len(plan.examples)).astype(np.float32)
        return batch | {"weights": weights} | self._targets(split, plan, batch)

    def _targets(self, split: str, plan: MicrobatchPlan, batch: Arrays) -> Arrays:
        """Returns the arrays of a batch that only the objective of this head has."""
        raise NotImplementedError

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """Returns a prediction for each row of the split, from the outputs for its batches."""
        raise NotImplementedError

    def eval_batches(self, split: str) -> list[Arrays]:
        """Returns packed batches of one shape; the last one has fewer examples and as many rows."""
        return [
            self._arrays(split, plan, plan.need, self._eval_size()) for plan in self._layout(split)
        ]

    def _eval_size(self) -> int:
        """Returns the upper limit on examples in a batch of evaluation.

        It depends on the number of choices alone, so that tasks share a program.
        """
        return EVAL_TOKENS // packing.MIN_SHARE // 4 // self.n_choices

    def _layout(self, split: str) -> list[MicrobatchPlan]:
        """Returns the plans of a split's batches, which are made once."""
        if split not in self._layouts:
            self._layouts[split] = self._lay_out(split)
        return self._layouts[split]

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

            need = (max(n_rows, packing.n_rows(places)), self._length)
            plans.append(MicrobatchPlan(examples=order[start:stop], need=need, places=places))
            start = stop
        return plans

    def by_sequence(self, split: str, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs of each sequence of a split: [its tokens, …].

        Args:
            split: the split.
            outputs: [rows, length, …] of each batch of `eval_batches`.
        """
        found: list[np.ndarray] = [np.zeros(0)] * len(self._sequences[split])
        for plan, output in zip(self._layout(split), outputs, strict=True):
            for example, (row, offset) in zip(plan.examples, plan.places, strict=True):
                n_tokens = len(self._sequences[split][example].ids)
                found[example] = output[row, offset : offset + n_tokens]
        return found


class EncoderFeed(PackedFeed):
    """Feeds an encoder with texts and pairs of texts, for scores of each."""

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
        n_choices = 2 if task.kind == "choice" else 1
        super().__init__(pad_id, n_choices)
        self._task = task
        self._as_pair = settings.single_as_pair
        self._cutting = truncating(tokenizer, settings.fitting(max_positions))
        self.read(splits)

    def read(self, splits: Mapping[str, list[Row]]) -> None:
        """Tokenises other rows in place of those before."""
        self._rows = splits
        self._samples: dict[str, list[inputs.Sample]] = {}
        sequences: dict[str, list[packing.Encoded]] = {}
        for split, rows in splits.items():
            self._samples[split] = []
            for row in rows:
                self._samples[split].extend(inputs.samples(self._task, row))
            sequences[split] = _encode(self._cutting, self._samples[split], self._as_pair)
        self._take(sequences)

    def _targets(self, split: str, plan: MicrobatchPlan, batch: Arrays) -> Arrays:
        labels = [self._samples[split][example].label for example in plan.examples]
        values = np.zeros(len(batch["first"]) // self.n_choices, np.float32)
        values[: len(labels)] = [label or 0 for label in labels]  # None where it is unknown

        is_regression = self._task.kind == "regression"
        if is_regression:
            classes = np.zeros(len(values), np.int32)
        else:
            classes = values.astype(np.int32)
        return {
            "labels": classes,
            "targets": values,
            "classes": np.arange(n_outputs(self._task)) < self._n_used(),
            "regression": np.asarray(is_regression, np.float32),
        }

    def _n_used(self) -> int:
        """Returns how many outputs of the head the task uses; choices are scored side by side."""
        if self._task.kind == "choice" and self._task.labels:
            return len(self._task.labels)
        return self._task.n_classes

    def scores(self, split: str, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the scores of a split's examples, float32 [examples, outputs]."""
        scores = np.zeros((len(self._samples[split]), n_outputs(self._task)), np.float32)
        for plan, output in zip(self._layout(split), outputs, strict=True):
            scores[list(plan.examples)] = output[: len(plan.examples)]
        return scores

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """Returns a prediction for each row, from float [examples, outputs] of each batch."""
        scores = self.scores(split, outputs)
        predictions = []
        start = 0
        for row in self._rows[split]:
            # ReCoRD has one example for each entity.
            n_samples = len(row["entities"]) if self._task.kind == "entities" else 1
            row_scores = scores[start : start + n_samples]
            predictions.append(inputs.decide(self._task, row, row_scores))
            start += n_samples
        return predictions


def n_outputs(task: Task) -> int:
    """Returns the outputs of the head for a task; all of GLUE's share one number, and programs."""
    return max(N_OUTPUTS, task.n_classes)


def _encode(
    tokenizer: tokenizers.Tokenizer, samples: Sequence[inputs.Sample], as_pair: bool
) -> list[packing.Encoded]:
    """Returns the tokens of all texts of `samples`, choices side by side."""
    texts: list[Any] = []
    for sample in samples:
        for first, second in sample.pairs:
            if second is not None:
                texts.append((first, second))
            elif as_pair:
                texts.append((first, ""))
            else:
                texts.append(first)
    return [encoded(encoding) for encoding in tokenizer.encode_batch(texts)]


def encoded(encoding: tokenizers.Encoding) -> packing.Encoded:
    """Returns the arrays of a text that is tokenised."""
    ids = np.asarray(encoding.ids, np.int32)
    return packing.Encoded(ids=ids, types=np.asarray(encoding.type_ids, np.int32))


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

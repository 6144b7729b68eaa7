"""Turns rows of a task into text-to-text batches, and outputs into predictions, for a T5.

The form of the text is T5's (arXiv 1910.10683, section 2.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from cramjax.console import Announce
from cramjax.errors import UserError
from cramjax.finetuning.feed import Arrays, MicrobatchPlan, truncating
from cramjax.finetuning.protocols import Settings
from cramjax.glue import inputs
from cramjax.glue.tasks import Row, Task

# Each length is compiled; longer inputs and targets have multiples of the last.
INPUT_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TARGET_LENGTHS = (4, 8, 16, 32, 64, 128)

EVAL_TOKENS = 8192
"""Input tokens in a batch of evaluation."""

# Rows whose answers are tried before finetuning.
_N_CHECKED = 1000


class T5Feed:
    """Feeds a T5 with inputs and targets, padded to the longest of a microbatch.

    A row with several right answers becomes a training example for each of them.
    """

    shares_rows = False

    def __init__(
        self,
        task: Task,
        splits: Mapping[str, list[Row]],
        tokenizer: tokenizers.Tokenizer,
        special: dict[str, int],
        settings: Settings,
    ):
        """Tokenises all examples.

        Args:
            splits: rows by split, with "train" among them if the task is to be trained.
            special: ids of the special tokens "pad" and "sep".
        """
        self._task = task
        self._special = special
        self._full_tokenizer = tokenizer
        self._input_tokenizer = truncating(tokenizer, settings.max_length)
        self._target_tokenizer = truncating(tokenizer, settings.max_target)
        self.read(splits)
        longest = max(map(len, self._targets), default=settings.max_target)
        self.max_target = min(_fitting(TARGET_LENGTHS, longest), settings.max_target)

    def read(self, splits: Mapping[str, list[Row]]) -> None:
        """Tokenises other rows in place of those before."""
        self._rows = splits
        self._inputs: dict[str, list[np.ndarray]] = {}
        self._targets: list[np.ndarray] = []
        self.n_illegal: dict[str, int] = {}
        for split, rows in splits.items():
            texts = [inputs.source_text(self._task, row) for row in rows]
            self._inputs[split] = _encode(texts, self._input_tokenizer)
        if "train" in splits:
            self._make_training_pairs(self._target_tokenizer)
        self.n_train = len(self._inputs.get("train", ()))

    def _make_training_pairs(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Repeat the input of a training row for each of its targets."""
        pairs = []  # (number of the row, target)
        for number, row in enumerate(self._rows["train"]):
            for target in inputs.target_texts(self._task, row):
                pairs.append((number, target))

        encoded = self._inputs["train"]
        self._inputs["train"] = [encoded[number] for number, _ in pairs]
        self._targets = _encode([target for _, target in pairs], tokenizer)

    def train_lengths(self) -> np.ndarray:
        """Returns the tokens of each training input: int [n_train]."""
        return np.asarray([len(ids) for ids in self._inputs["train"]], int)

    def plan(self, examples: Sequence[int], *, fitted: bool = False) -> MicrobatchPlan:
        """Returns the lengths of inputs and targets that `examples` need.

        Lengths are of a short list in any case: a T5 has no rows to be shared.
        """
        del fitted
        longest_input = max((len(self._inputs["train"][i]) for i in examples), default=1)
        longest_target = max((len(self._targets[i]) for i in examples), default=1)
        need = (_fitting(INPUT_LENGTHS, longest_input), _fitting(TARGET_LENGTHS, longest_target))
        return MicrobatchPlan(examples=examples, need=need)

    def arrays(self, plan: MicrobatchPlan, need: tuple[int, ...], size: int) -> Arrays:
        """Returns a batch as `text_to_text.TextToText` describes it."""
        input_length, target_length = need
        sequences = [self._inputs["train"][example] for example in plan.examples]
        batch = self._padded(sequences, size, input_length)

        targets = np.full((size, target_length), self._special["pad"], np.int32)
        weights = np.zeros((size, target_length), np.float32)
        for row, example in enumerate(plan.examples):
            ids = self._targets[example]
            targets[row, : len(ids)] = ids
            weights[row, : len(ids)] = 1.0
        return batch | {"targets": targets, "weights": weights}

    def _padded(self, sequences: Sequence[np.ndarray], size: int, length: int) -> Arrays:
        """Returns tokens and mask [size, length]; rows without a sequence are padding."""
        tokens = np.full((size, length), self._special["pad"], np.int32)
        mask = np.zeros((size, length), bool)
        for row, ids in enumerate(sequences):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return {"tokens": tokens, "mask": mask}

    def eval_batches(self, split: str) -> list[Arrays]:
        """Returns batches of inputs of similar length; shorter inputs come in larger batches."""
        batches = []
        for examples, size, length in self._layout(split):
            sequences = [self._inputs[split][example] for example in examples]
            batches.append(self._padded(sequences, size, length))
        return batches

    def _layout(self, split: str) -> list[tuple[list[int], int, int]]:
        """Returns (examples, rows, length) of each batch of evaluation."""
        lengths = [len(ids) for ids in self._inputs[split]]
        order = sorted(range(len(lengths)), key=lambda example: -lengths[example])
        batches = []
        start = 0
        while start < len(order):
            length = _fitting(INPUT_LENGTHS, lengths[order[start]])
            size = max(1, EVAL_TOKENS // length)
            batches.append((order[start : start + size], size, length))
            start += size
        return batches

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """Returns a prediction for each row, from int [examples, max_target] of each batch.

        The outputs are generated tokens. A text that is no answer becomes None and is counted in
        `n_illegal`.
        """
        texts = [""] * len(self._rows[split])
        for (examples, _, _), output in zip(self._layout(split), outputs, strict=True):
            # The output has more rows than examples where a batch is not full.
            for example, ids in zip(examples, output, strict=False):
                texts[example] = self._full_tokenizer.decode(self._before_end(ids).tolist())

        rows = self._rows[split]
        predictions = [
            inputs.parse(self._task, row, text) for row, text in zip(rows, texts, strict=True)
        ]
        self.n_illegal[split] = sum(prediction is None for prediction in predictions)
        return predictions

    def _before_end(self, ids: np.ndarray) -> np.ndarray:
        """Returns the tokens before the first separator, or all."""
        is_end = ids == self._special["sep"]
        return ids[: int(np.argmax(is_end))] if is_end.any() else ids


def check_labels(task: Task, tokenizer: tokenizers.Tokenizer, sep_id: int) -> None:
    """Raises UserError, by label, if the tokenizer cannot write an answer of the task.

    A T5 whose tokenizer lowers capitals, or has no "_" or digits, would train for hours and answer
    nothing that counts.

    Args:
        sep_id: the token that ends an answer.
    """
    answers: Sequence[str] = task.labels or ()
    if task.name == "wsc" or task.kind in ("entities", "span", "text"):
        return  # the answers are words of the rows, see `check_rows`
    if task.labels is None:
        answers = [f"{tenths / 10:.1f}" for tenths in range(0, 51, 2)]

    for answer in answers:
        ids = tokenizer.encode(answer).ids
        if ids[-1:] != [sep_id]:
            raise UserError(
                f"--task {task.name}: the tokenizer of this T5 does not end the answer {answer!r} "
                "with its </s>, so that no answer would ever end; give its tokenizer.json a "
                "post_processor with the template $A </s>"
            )
        written = tokenizer.decode(ids)
        if inputs.parse(task, {}, written) != inputs.parse(task, {}, answer):
            raise UserError(_cannot_write(task, answer, written))


def check_rows(
    task: Task, rows: Sequence[Row], tokenizer: tokenizers.Tokenizer, announce: Announce
) -> None:
    """Checks the answers of a task whose answers are words of its rows.

    Args:
        rows: with labels; the first thousand are looked at.
        announce: gets a line if there are answers that the tokenizer cannot write.

    Raises:
        UserError: if they are the half or more.
    """
    if task.name != "wsc" and task.kind != "entities":
        return
    n_answers = 0
    lost: list[tuple[str, str]] = []  # answer, what is written
    for row in rows[:_N_CHECKED]:
        for answer in inputs.target_texts(task, row):
            n_answers += 1
            written = tokenizer.decode(tokenizer.encode(answer).ids)
            if inputs.parse(task, row, written) != inputs.parse(task, row, answer):
                lost.append((answer, written))

    if lost and 2 * len(lost) >= n_answers:
        raise UserError(_cannot_write(task, *lost[0]))
    if lost:
        announce(
            f"{task.name}: the tokenizer cannot write {len(lost)} of the first {n_answers} "
            f"answers, for example {lost[0][0]!r:.80}; these stay wrong"
        )


def _cannot_write(task: Task, answer: str, written: str) -> str:
    return (
        f"--task {task.name}: the tokenizer of this T5 writes the answer {answer!r:.80} as "
        f"{written!r:.80}, which never counts; name other tasks, or take a T5 whose tokenizer "
        "keeps capitals, digits and '_' (data.lowercase=False)"
    )


def _encode(texts: Sequence[str], tokenizer: tokenizers.Tokenizer) -> list[np.ndarray]:
    encodings = tokenizer.encode_batch(list(texts))
    return [np.asarray(encoding.ids, np.int32) for encoding in encodings]


def _fitting(known: Sequence[int], n: int) -> int:
    """Returns the first of `known` that is at least `n`, or else a multiple of the last."""
    multiple = math.ceil(n / known[-1]) * known[-1]
    return next((length for length in known if length >= n), multiple)

"""From rows of a task to arrays of text-to-text batches and back to predictions, for a T5 (arXiv 1910.10683, section 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from cramjax.finetuning.feed import Arrays, Plan, truncating
from cramjax.finetuning.protocols import Settings
from cramjax.glue import inputs
from cramjax.glue.tasks import Row, Task

# Lengths of inputs and of targets that are compiled.
INPUT_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
TARGET_LENGTHS = (4, 8, 16, 32, 64, 128)
EVAL_TOKENS = 8192


class T5Feed:
    """Inputs and targets padded to the longest of a microbatch; a row with several right answers is trained on each of them."""

    def __init__(
        self,
        task: Task,
        splits: dict[str, list[Row]],
        tokenizer: tokenizers.Tokenizer,
        special: dict[str, int],
        settings: Settings,
    ):
        self._task, self._rows, self._special, self._plain = task, splits, special, tokenizer
        self._tokenizer = truncating(tokenizer, settings.max_length)
        self._max_target = settings.max_target
        self._inputs: dict[str, list[np.ndarray]] = {}
        self._targets: list[np.ndarray] = []
        self.n_illegal: dict[str, int] = {}
        for split, rows in splits.items():
            encoded = self._encode([inputs.source_text(task, row) for row in rows], self._tokenizer)
            if split == "train":
                pairs = [
                    (n, text)
                    for n, row in enumerate(rows)
                    for text in inputs.target_texts(task, row)
                ]
                encoded = [encoded[n] for n, _ in pairs]
                self._targets = self._encode(
                    [text for _, text in pairs], truncating(tokenizer, self._max_target)
                )
            self._inputs[split] = encoded
        self.n_train = len(self._inputs.get("train", ()))
        longest = max((len(target) for target in self._targets), default=self._max_target)
        self.max_target = min(_fitting(TARGET_LENGTHS, longest), self._max_target)

    def _encode(self, texts: Sequence[str], tokenizer: tokenizers.Tokenizer) -> list[np.ndarray]:
        return [np.asarray(found.ids, np.int32) for found in tokenizer.encode_batch(list(texts))]

    def plan(self, examples: Sequence[int]) -> Plan:
        """Lengths of inputs and targets."""
        longest = (
            max((len(arrays[example]) for example in examples), default=1)
            for arrays in (self._inputs["train"], self._targets)
        )
        lengths = zip((INPUT_LENGTHS, TARGET_LENGTHS), longest, strict=True)
        return Plan(examples=examples, need=tuple(_fitting(known, n) for known, n in lengths))

    def arrays(self, plan: Plan, need: tuple[int, ...], size: int) -> Arrays:
        """As `text_to_text.TextToText` wants a batch."""
        batch = self._padded(
            [self._inputs["train"][example] for example in plan.examples], size, need[0]
        )
        targets = np.full((size, need[1]), self._special["pad"], np.int32)
        weights = np.zeros((size, need[1]), np.float32)
        for row, example in enumerate(plan.examples):
            ids = self._targets[example]
            targets[row, : len(ids)], weights[row, : len(ids)] = ids, 1.0
        return batch | {"targets": targets, "weights": weights}

    def _padded(self, sequences: Sequence[np.ndarray], size: int, length: int) -> Arrays:
        tokens, mask = (
            np.full((size, length), self._special["pad"], np.int32),
            np.zeros((size, length), bool),
        )
        for row, ids in enumerate(sequences):
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
        return {"tokens": tokens, "mask": mask}

    def eval_batches(self, split: str) -> list[Arrays]:
        """Inputs of like length together, the number of them by their length."""
        return [
            self._padded([self._inputs[split][example] for example in chosen], size, length)
            for chosen, size, length in self._layout(split)
        ]

    def _layout(self, split: str) -> list[tuple[list[int], int, int]]:
        """(examples, rows, length) of each batch."""
        lengths = [len(ids) for ids in self._inputs[split]]
        order = sorted(range(len(lengths)), key=lambda example: -lengths[example])
        batches, start = [], 0
        while start < len(order):
            length = _fitting(INPUT_LENGTHS, lengths[order[start]])
            size = max(1, EVAL_TOKENS // length)
            batches.append((order[start : start + size], size, length))
            start += size
        return batches

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """From generated int [examples, max_target] of each batch; what is no answer is None and is counted in `n_illegal`."""
        texts = [""] * len(self._rows[split])
        for (chosen, _, _), output in zip(self._layout(split), outputs, strict=True):
            ends = output == self._special["sep"]
            for example, ids, end in zip(chosen, output, ends, strict=False):
                kept = ids[: int(np.argmax(end))] if end.any() else ids
                texts[example] = self._plain.decode(kept.tolist())
        found = [
            inputs.parse(self._task, row, text)
            for row, text in zip(self._rows[split], texts, strict=True)
        ]
        self.n_illegal[split] = sum(value is None for value in found)
        return found


def _fitting(known: Sequence[int], n: int) -> int:
    return next((length for length in known if length >= n), -(-n // known[-1]) * known[-1])

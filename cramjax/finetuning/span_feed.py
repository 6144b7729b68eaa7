"""Turns questions and contexts into batches, and scores of starts and ends into answers.

A long context is cut into windows that overlap, each behind the whole question (arXiv 1810.04805,
section 4.2). Answers are pieces of the context as it stands in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from cramjax.errors import UserError
from cramjax.finetuning import packing
from cramjax.finetuning import windows as cutter
from cramjax.finetuning.feed import Arrays, MicrobatchPlan, PackedFeed
from cramjax.finetuning.protocols import Settings
from cramjax.glue.tasks import Row, Task

Answer = dict[str, Any]
"""{"text", "score", "no_answer"}: a piece of the context, the sum of its scores, and the score of
"no answer" less that."""

Span = tuple[int, int]
"""The first and the last token of an answer."""


class SpanFeed(PackedFeed):
    """Feeds an encoder with a question and a context; an example is a window."""

    def __init__(
        self,
        task: Task,
        splits: Mapping[str, list[Row]],
        tokenizer: tokenizers.Tokenizer,
        pad_id: int,
        settings: Settings,
        max_positions: int | None,
    ):
        """Tokenises all questions; arguments are those of `feed.EncoderFeed`.

        Training rows whose answers are all elsewhere than in their context are left out.

        Raises:
            UserError: if `max_length` leaves no room, or no training row is left.
        """
        super().__init__(pad_id)

        self._name = task.folder
        limit = settings.fitting(max_positions)
        # A question may fill half of a window.
        self._question_limit = min(settings.max_question, limit // 2)
        self._plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        self._plain.no_truncation()
        self._cutting = cutter.cutting(
            tokenizer, limit, settings.stride, n_before=self._question_limit
        )
        self._n_best = settings.n_best
        self._max_answer = settings.max_answer
        self.read(splits)

    def read(self, splits: Mapping[str, list[Row]]) -> None:
        """Tokenises other rows in place of those before."""
        self._rows = {split: list(rows) for split, rows in splits.items()}
        if "train" in self._rows:
            self._rows["train"] = [row for row in self._rows["train"] if _can_be_learned(row)]
            if not self._rows["train"]:
                raise UserError(
                    f"{self._name}: no answer of the training rows stands in its context, so that "
                    "nothing can be learned; correct the answers"
                )

        sequences: dict[str, list[packing.Encoded]] = {}
        self._windows: dict[str, list[tuple[int, np.ndarray]]] = {}  # (row, places) of each
        self._spans: dict[str, list[Span | None]] = {}
        for split, rows in self._rows.items():
            sequences[split] = []
            self._windows[split] = []
            self._spans[split] = []
            pairs = list(zip(self._questions(rows), (row["context"] for row in rows), strict=True))
            for number, parts in enumerate(cutter.windows(self._cutting, pairs, 1)):
                label = rows[number].get("label", ())
                sequences[split].extend(part.sequence for part in parts)
                self._spans[split].extend(_span(part.places, label) for part in parts)
                if split != "train":
                    self._windows[split].extend((number, part.places) for part in parts)
        self._take(sequences)

    def _questions(self, rows: Sequence[Row]) -> list[str]:
        """Returns the questions, cut after as many tokens as a question may have."""
        return [self._cut(row["question"].lstrip()) for row in rows]

    def _cut(self, question: str) -> str:
        # A token has at least one byte, so that a short text is short in tokens.
        while len(question.encode()) > self._question_limit:
            encoding = self._plain.encode(question, add_special_tokens=False)
            if len(encoding.ids) <= self._question_limit:
                break
            # The beginning of a text may have other tokens than in the whole.
            end = encoding.offsets[self._question_limit - 1][1]
            question = question[: min(end, len(question) - 1)]
        return question

    def _targets(self, split: str, plan: MicrobatchPlan, batch: Arrays) -> Arrays:
        starts = batch["first"].copy()
        ends = batch["first"].copy()
        weights = (np.arange(len(starts)) < len(plan.examples)).astype(np.float32)
        for number, example in enumerate(plan.examples):
            span = self._spans[split][example]
            if span is None:
                # An answer that is not in its context is no target, and "no answer" is wrong.
                weights[number] = 0.0
                continue
            starts[number] += span[0]
            ends[number] += span[1]
        return {"starts": starts, "ends": ends, "weights": weights}

    def n_best(self, split: str, outputs: Sequence[np.ndarray]) -> list[list[Answer]]:
        """Returns the best answers of each row, best first; none for a context without tokens."""
        found = self.by_sequence(split, outputs)
        rows = self._rows[split]
        pieces: list[list[tuple[float, int, int]]] = [[] for _ in rows]
        null = [np.inf] * len(rows)
        for (number, places), scores in zip(self._windows[split], found, strict=True):
            # "No answer" is the first token; the window that is the least sure of it counts.
            null[number] = min(null[number], float(scores[0].sum()))
            pieces[number].extend(self._pieces(places, scores))

        best = []
        for row, candidates, none in zip(rows, pieces, null, strict=True):
            candidates.sort(key=lambda piece: -piece[0])
            answers: dict[str, Answer] = {}
            for score, start, end in candidates:
                text = row["context"][start:end].strip()
                if text and text not in answers:
                    answers[text] = {"text": text, "score": score, "no_answer": none - score}
            best.append(list(answers.values())[: self._n_best])
        return best

    def _pieces(self, places: np.ndarray, scores: np.ndarray) -> list[tuple[float, int, int]]:
        """Returns (score, first character, last + 1) of the best spans of a window.

        Args:
            places: int32 [tokens, 2].
            scores: float32 [tokens, 2].
        """
        tokens = np.flatnonzero(places[:, 0] >= 0)
        starts = _highest(tokens, scores[tokens, 0], self._n_best)
        ends = _highest(tokens, scores[tokens, 1], self._n_best)
        lengths = ends[None, :] - starts[:, None] + 1
        sums = scores[starts, 0][:, None] + scores[ends, 1][None, :]
        allowed = np.argwhere((lengths >= 1) & (lengths <= self._max_answer))
        # No more than are kept, because a large split has many windows.
        order = np.argsort(-sums[tuple(allowed.T)], kind="stable")
        allowed = allowed[order[: self._n_best]]
        return [
            (float(sums[i, j]), int(places[starts[i], 0]), int(places[ends[j], 1]))
            for i, j in allowed
        ]

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """Returns the best answer of each row that is a text, "" if there is none."""
        nothing = {"text": "", "score": 0.0, "no_answer": 0.0}
        return [answers[0] if answers else nothing for answers in self.n_best(split, outputs)]


def _can_be_learned(row: Row) -> bool:
    answers = row["label"]
    return not answers or any(answer["start"] >= 0 for answer in answers)


def _highest(tokens: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Returns the `n` tokens with the highest scores."""
    return tokens[np.argsort(-scores, kind="stable")[:n]]


def _span(places: np.ndarray, answers: Sequence[Mapping[str, Any]]) -> Span | None:
    """Returns the first and the last token of the first answer in a window.

    Both are 0, the first token of all, if the window does not hold the whole answer. None stands
    for answers that are all elsewhere than in the context.
    """
    placed = [answer for answer in answers if answer["start"] >= 0]
    if answers and not placed:
        return None
    tokens = np.flatnonzero(places[:, 0] >= 0)
    if not placed or not len(tokens):
        return 0, 0
    text = placed[0]["text"]
    start = placed[0]["start"] + len(text) - len(text.lstrip())
    end = start + len(text.strip())
    if start < places[tokens[0], 0] or end > places[tokens[-1], 1]:
        return 0, 0

    inside = tokens[(places[tokens, 0] < end) & (places[tokens, 1] > start)]
    if not len(inside):
        return 0, 0
    return int(inside[0]), int(inside[-1])

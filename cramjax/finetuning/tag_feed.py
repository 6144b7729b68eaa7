"""Turns sentences with a tag for each word into batches, and scores into tags.

A word is read at its first token, as in BERT (arXiv 1810.04805, section 5.3). A long sentence is
cut into windows that overlap, and a word counts in the window with the most context on both sides,
so that every word is learned once and gets one tag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from cramjax.finetuning import packing
from cramjax.finetuning import windows as cutter
from cramjax.finetuning.feed import Arrays, MicrobatchPlan, PackedFeed
from cramjax.finetuning.protocols import Settings
from cramjax.glue.tasks import Row, Task

Home = tuple[int, int]
"""A window, and the first token of a word in it."""


class TagFeed(PackedFeed):
    """Feeds an encoder with words that are joined by spaces; an example is a window."""

    def __init__(
        self,
        task: Task,
        splits: Mapping[str, list[Row]],
        tokenizer: tokenizers.Tokenizer,
        pad_id: int,
        settings: Settings,
        max_positions: int | None,
    ):
        """Tokenises all sentences; arguments are those of `feed.EncoderFeed`.

        Raises:
            UserError: if `max_length` leaves no room.
        """
        super().__init__(pad_id)
        limit = settings.fitting(max_positions)
        self._cutting = cutter.cutting(tokenizer, limit, settings.stride)
        self._as_pair = settings.single_as_pair
        self._tags = list(task.labels or ())
        self._numbers = {tag: number for number, tag in enumerate(self._tags)}
        self.read(splits)

    def read(self, splits: Mapping[str, list[Row]]) -> None:
        """Tokenises other rows in place of those before."""
        self._homes: dict[str, list[list[Home | None]]] = {}
        self._labels: dict[str, list[np.ndarray]] = {}
        sequences: dict[str, list[packing.Encoded]] = {}
        for split, rows in splits.items():
            sequences[split] = []
            self._homes[split] = []
            self._labels[split] = []
            texts = [_text(row["words"], self._as_pair) for row in rows]
            for row, parts in zip(rows, cutter.windows(self._cutting, texts, 0), strict=True):
                base = len(sequences[split])
                homes = _homes(row["words"], parts, base)
                sequences[split].extend(part.sequence for part in parts)
                self._homes[split].append(homes)
                self._labels[split].extend(self._labelled(row, parts, homes, base))
        self._take(sequences)
        n_unread = sum(map(self.n_unread, splits))
        self.notes = []
        if n_unread:
            self.notes.append(f"{n_unread} words have no token, so they get {self._tags[0]!r}")

    def _labelled(
        self, row: Row, parts: Sequence[cutter.Window], homes: Sequence[Home | None], base: int
    ) -> list[np.ndarray]:
        """Returns int32 [tokens] of each window: tags at the homes of words, -1 elsewhere."""
        labels = [np.full(len(part.places), -1, np.int32) for part in parts]
        for tag, home in zip(row.get("label", ()), homes, strict=False):
            if home is None:
                continue
            window, token = home
            # Of two words in one token the first is learned.
            if labels[window - base][token] < 0:
                labels[window - base][token] = self._numbers[tag]
        return labels

    def _targets(self, split: str, plan: MicrobatchPlan, batch: Arrays) -> Arrays:
        labels = np.full(batch["tokens"].shape, -1, np.int32)
        for example, (row, offset) in zip(plan.examples, plan.places, strict=True):
            values = self._labels[split][example]
            labels[row, offset : offset + len(values)] = values
        return {"labels": labels}

    def n_unread(self, split: str) -> int:
        """Returns the words without a token, such as one of control characters only."""
        return sum(homes.count(None) for homes in self._homes[split])

    def word_scores(self, split: str, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the scores of the words of each row, float32 [words, tags].

        A word without a token has the first tag, which is "O" if there is one.
        """
        found = self.by_sequence(split, outputs)
        first = np.zeros(len(self._tags), np.float32)
        first[0] = 1.0
        scores = []
        for homes in self._homes[split]:
            rows = [found[home[0]][home[1]] if home else first for home in homes]
            scores.append(np.asarray(rows, np.float32).reshape(len(homes), len(self._tags)))
        return scores

    def predictions(self, split: str, outputs: Sequence[np.ndarray]) -> list[Any]:
        """Returns the tags of the words of each row."""
        predictions = []
        for scores in self.word_scores(split, outputs):
            predictions.append([self._tags[number] for number in scores.argmax(axis=1)])
        return predictions


def _text(words: Sequence[str], as_pair: bool) -> Any:
    text = " ".join(words)
    return (text, "") if as_pair else text


def _homes(words: Sequence[str], parts: Sequence[cutter.Window], base: int) -> list[Home | None]:
    """Returns for each word the window in which it is read, and its first token there.

    Args:
        words: of a sentence, which were joined by spaces.
        parts: its windows.
        base: the number of the first window.
    """
    word_at = _words_of_characters(words)
    best: list[tuple[int, Home] | None] = [None] * len(words)
    for number, part in enumerate(parts):
        places = part.places

        text_tokens = np.flatnonzero(places[:, 0] >= 0)
        seen: set[int] = set()
        for token in text_tokens.tolist():
            start, end = places[token].tolist()
            # A token may begin with the space before a word, and hold several words.
            for word in dict.fromkeys(word_at[start:end]):
                if word < 0 or word in seen:
                    continue
                seen.add(word)
                context = min(token - text_tokens[0], text_tokens[-1] - token)
                known = best[word]
                if known is None or context > known[0]:
                    best[word] = (int(context), (base + number, token))
    return [found[1] if found else None for found in best]


def _words_of_characters(words: Sequence[str]) -> list[int]:
    """Returns the word of each character of the joined text, -1 at the spaces between."""
    word_at: list[int] = []
    for number, word in enumerate(words):
        word_at.extend([number] * len(word))
        word_at.append(-1)
    return word_at

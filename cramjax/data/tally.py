"""Counts what becomes of text on its way to tokens: what is deleted, and what becomes [UNK]."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np
from tokenizers import Tokenizer

# Longer excerpts of unknown text, and more of them, say no more.
_EXAMPLE_CHARS = 24
_MAX_EXAMPLES = 6
# States of a character in a table: it was not looked at yet, stays, or vanishes.
_UNSEEN, _STAYS, _VANISHES = 0, 1, 2
_N_CODE_POINTS = 0x110000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts over some texts; white space is no character here.

    Attributes:
        characters: Characters before any normalisation.
        deleted_characters: Characters that normalisation deletes.
        unknown_characters: Characters inside unknown tokens.
        tokens: Tokens.
        unknown_tokens: Tokens that are [UNK].
        longest_unknown: Characters of the longest text that became one unknown token.
        deleted: Examples of deleted characters.
        unknown: Examples of the text of unknown tokens.
    """

    characters: int = 0
    deleted_characters: int = 0
    unknown_characters: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    longest_unknown: int = 0
    deleted: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        """Returns the tally of both texts; the examples of `self` come first."""
        values = {}
        for field in dataclasses.fields(self):
            values[field.name] = getattr(self, field.name) + getattr(other, field.name)
        values["longest_unknown"] = max(self.longest_unknown, other.longest_unknown)
        for name in ("deleted", "unknown"):
            values[name] = tuple(dict.fromkeys(values[name]))[:_MAX_EXAMPLES]
        return Tally(**values)

    @classmethod
    def of_dict(cls, values: Mapping) -> Tally:
        """Returns the tally of which `dataclasses.asdict` made `values`, also through JSON."""
        examples = {name: tuple(values[name]) for name in ("deleted", "unknown")}
        return cls(**{**values, **examples})

    @property
    def unknown_token_share(self) -> float:
        """Share of the tokens that are [UNK]."""
        return self.unknown_tokens / max(1, self.tokens)

    @property
    def unknown_character_share(self) -> float:
        """Share of the characters that are inside unknown tokens."""
        return self.unknown_characters / max(1, self.characters)

    @property
    def deleted_character_share(self) -> float:
        """Share of the characters that normalisation deletes."""
        return self.deleted_characters / max(1, self.characters)

    def shares(self) -> dict[str, float]:
        """Returns the shares by name, as a manifest has them."""
        names = ("unknown_token_share", "unknown_character_share", "deleted_character_share")
        return {name: getattr(self, name) for name in names}


class Deletions:
    """Counts the characters that a normaliser turns into nothing.

    Each character is tried once, alone. A normaliser that only deletes characters in company is
    unknown to the field.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Remember the tokenizer's normaliser; without one, nothing is deleted."""
        self._normalizer = tokenizer.normalizer
        self._states = np.full(_N_CODE_POINTS, _UNSEEN, np.uint8)

    def tally(self, texts: Iterable[str]) -> Tally:
        """Returns the characters of the texts, and those that vanish."""
        n_characters = 0
        n_deleted = 0
        examples: dict[str, None] = {}
        for text in texts:
            n_characters += count_characters(text)
            if self._normalizer is None:
                continue

            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            vanishes = self._look_up(codes) == _VANISHES
            n_vanishing = int(vanishes.sum())
            if n_vanishing and len(examples) < _MAX_EXAMPLES:
                examples |= dict.fromkeys(map(chr, np.unique(codes[vanishes])[:_MAX_EXAMPLES]))
            n_deleted += n_vanishing
        return Tally(
            characters=n_characters,
            deleted_characters=n_deleted,
            deleted=tuple(examples)[:_MAX_EXAMPLES],
        )

    def _stays(self, character: str) -> bool:
        """Returns whether something of a character is left, or it was nothing to see."""
        is_invisible = unicodedata.category(character) in ("Zs", "Cf", "Cc")
        return is_invisible or bool(self._normalizer.normalize_str(character).strip())

    def _look_up(self, codes: np.ndarray) -> np.ndarray:
        """Returns the state of each code point, uint8 [n]."""
        states = self._states[codes]
        if not states.all():
            for code in np.unique(codes[states == _UNSEEN]).tolist():
                self._states[code] = _VANISHES
                if self._stays(chr(code)):
                    self._states[code] = _STAYS
            states = self._states[codes]
        return states


def count_characters(text: str) -> int:
    """Returns the characters of a text that are not white space, as it is after cleaning."""
    return len(text) - text.count(" ") - text.count("\n") - text.count("\t")


def unknown_spans(text: str, ids: Iterable[int], offsets: Iterable, unknown_id: int) -> Tally:
    """Returns the unknown tokens of one text and the characters inside them.

    Args:
        text: The text.
        ids: Ids of its tokens.
        offsets: (start, end) of each token in the text, in characters.
        unknown_id: Id of [UNK].
    """
    n_characters = n_tokens = longest = 0
    examples: dict[str, None] = {}
    for token_id, (start, end) in zip(ids, offsets, strict=True):
        if token_id == unknown_id:
            n_tokens += 1
            n_characters += count_characters(text[start:end])
            longest = max(longest, end - start)
            if len(examples) < _MAX_EXAMPLES:
                examples[text[start : min(end, start + _EXAMPLE_CHARS)]] = None
    return Tally(
        unknown_characters=n_characters,
        unknown_tokens=n_tokens,
        longest_unknown=longest,
        unknown=tuple(examples),
    )

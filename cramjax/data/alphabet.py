"""Chooses the characters that a newly trained tokenizer knows."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import normalizers

# All characters are known that fit in this share of the entries. Beyond it, those that are needed
# to know all but a ten-thousandth of the text: a rarer one costs an entry that a word needs.
_FREE_SHARE = 1 / 8
_COVERAGE = 0.9999


def count(texts: Iterable[str], normalizer: normalizers.Normalizer) -> list[tuple[str, int]]:
    """Count the characters of normalised texts.

    Args:
        texts: The sample.
        normalizer: Applied to every character.

    Returns:
        (character, count) without white space, the commonest first.
    """
    raw: collections.Counter[int] = collections.Counter()
    for text in texts:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        distinct, numbers = np.unique(codes, return_counts=True)
        raw.update(dict(zip(distinct.tolist(), numbers.tolist(), strict=True)))

    # One normalisation for each distinct character instead of one for each text.
    counts: collections.Counter[str] = collections.Counter()
    for code, number in raw.items():
        for normalized in normalizer.normalize_str(chr(code)):
            counts[normalized] += number

    # By character among equals, so that the order is always the same.
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [entry for entry in ranked if not entry[0].isspace()]


def choose(counts: Sequence[tuple[str, int]], costs: Sequence[int], n_entries: int) -> list[str]:
    """Return the characters that the tokenizer knows, the commonest first.

    Args:
        counts: See `count`.
        costs: Entries that each of them takes.
        n_entries: Entries for characters and words together.
    """
    total = sum(number for _, number in counts)
    chosen = []
    n_known = n_used = 0
    for (character, number), cost in zip(counts, costs, strict=True):
        is_free = n_used + cost <= n_entries * _FREE_SHARE
        is_needed = n_known < total * _COVERAGE
        if n_used + cost > n_entries or not (is_free or is_needed):
            break
        chosen.append(character)
        n_known += number
        n_used += cost
    return chosen


def coverage(counts: Sequence[tuple[str, int]], n_entries: int) -> float:
    """Return the share of the text that the characters of `choose` at one entry each make up."""
    chosen = choose(counts, [1] * len(counts), n_entries)
    if len(chosen) == len(counts) or len(counts) > n_entries:
        return 1.0
    return _COVERAGE

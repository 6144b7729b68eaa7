"""Tags of words: their schemes, the entities in them, and scores over entities.

Entities are counted as conlleval (the script of CoNLL-2000 to 2003) and seqeval's default mode
count them: any change of the tag that can begin an entity begins one, whether the scheme allows it
or not.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator, Sequence

OUTSIDE = "O"

_ENTITY = re.compile(r"[BIESLU]-.+")
# BILOU has other letters for the end of an entity and for an entity of one word.
_BILOU = {"L": "E", "U": "S"}

Entity = tuple[str, int, int]
"""Type, first word and last word."""


def are_entities(tags: Iterable[str]) -> bool:
    """Returns whether all tags are "O" or a letter of IOB, BIOES or BILOU with a type."""
    return all(tag == OUTSIDE or _ENTITY.fullmatch(tag) for tag in tags)


def entities(tags: Sequence[str]) -> list[Entity]:
    """Returns the entities of a sentence in their order."""
    found: list[Entity] = []
    before, kind_before = OUTSIDE, ""
    first = 0
    for number, tag in enumerate([*tags, OUTSIDE]):
        letter, kind = _parts(tag)
        if _ends(before, letter, kind_before, kind):
            found.append((kind_before, first, number - 1))
        if _begins(before, letter, kind_before, kind):
            first = number
        before, kind_before = letter, kind
    return found


def _parts(tag: str) -> tuple[str, str]:
    """Returns the letter and the type of a tag."""
    letter, _, kind = tag.partition("-")
    return _BILOU.get(letter, letter), kind


def _ends(before: str, letter: str, kind_before: str, kind: str) -> bool:
    """Returns whether an entity ends before a tag."""
    if before == OUTSIDE:
        return False
    # After E and S an entity is over; B, S and O are outside of what was before.
    return before in "ES" or letter in ("B", "S", OUTSIDE) or kind_before != kind


def _begins(before: str, letter: str, kind_before: str, kind: str) -> bool:
    """Returns whether an entity begins with a tag."""
    if letter == OUTSIDE:
        return False
    return letter in "BS" or before in ("E", "S", OUTSIDE) or kind_before != kind


def as_iob2(tags: Sequence[str]) -> list[str]:
    """Returns the tags of the same entities in IOB2: B- at each first word, I- at the others."""
    written = [OUTSIDE] * len(tags)
    for kind, first, last in entities(tags):
        written[first] = f"B-{kind}"
        for number in range(first + 1, last + 1):
            written[number] = f"I-{kind}"
    return written


def scheme(sentences: Iterable[Sequence[str]]) -> str:
    """Returns the scheme that sentences of tags are written in: "BIOES", "IOB1" or "IOB2".

    In IOB1 an entity begins with I-, and with B- only after another entity of its type.
    """
    n_inside = n_begun = 0
    for tags in sentences:
        before = OUTSIDE
        for tag in tags:
            letter = tag[:1]
            if letter in "ESLU" and tag != OUTSIDE:
                return "BIOES"
            follows = before[:1] in "BI" and before[2:] == tag[2:]
            if letter == "I" and not follows:
                n_inside += 1
            elif letter == "B" and not follows:
                n_begun += 1
            before = tag
    return "IOB1" if n_inside and not n_begun else "IOB2"


def n_repaired(sentences: Iterable[Sequence[str]]) -> int:
    """Returns how many tags IOB2 does not allow: an I- that nothing of its type precedes."""
    return sum(
        tag != repaired
        for tags in sentences
        for tag, repaired in zip(tags, as_iob2(tags), strict=True)
    )


def scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Returns precision, recall and f1 (0 to 1) of entities, and their number in `gold`, "support".

    The key "" has those of all entities together, the others are types. A quotient by 0 is 0.

    Args:
        gold: tags of each sentence.
        predicted: as many.
    """
    n_gold: collections.Counter[str] = collections.Counter()
    n_predicted: collections.Counter[str] = collections.Counter()
    n_right: collections.Counter[str] = collections.Counter()
    for right, guess in zip(gold, predicted, strict=True):
        # An entity counts for its type and for all.
        known, guessed = set(entities(right)), set(entities(guess))
        n_gold.update(_kinds(known))
        n_predicted.update(_kinds(guessed))
        n_right.update(_kinds(known & guessed))

    by_kind = {}
    for kind in sorted({"", *n_gold, *n_predicted}):
        precision = _share(n_right[kind], n_predicted[kind])
        recall = _share(n_right[kind], n_gold[kind])
        by_kind[kind] = {
            "precision": precision,
            "recall": recall,
            "f1": _share(2 * precision * recall, precision + recall),
            "support": n_gold[kind],
        }
    return by_kind


def _kinds(found: Iterable[Entity]) -> Iterator[str]:
    for kind, _, _ in found:
        yield from ("", kind)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

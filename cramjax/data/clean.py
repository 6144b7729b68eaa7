"""Cleans one document: normalises Unicode and white space, and bounds the length.

These are pure functions of one document. `dedup.py` compares documents; the compressibility
filter needs tokens and is in `build.py`.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from typing import NamedTuple

from cramjax.data import pair_text

# Control characters that are not white space, soft hyphen, marks of direction, word joiner, byte
# order mark, lone surrogates and the two noncharacters of the basic plane. Joiners stay: Indic
# and Persian spelling needs them.
_DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069"
    "\ufeff\ud800-\udfff\ufffe\uffff]"
)
# Khmer and Thai part words with it.
_ZERO_WIDTH_SPACE = "\u200b"
_SURROGATES = re.compile("[\ud800-\udfff]")
# They end a clause where no space follows.
_STOPS = "。！？；，、"
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanRules:
    """The settings of `clean`: the keys of `config.data` with the same names.

    Attributes:
        normalize: Apply `normalize`.
        min_chars: Drop shorter documents, in characters.
        max_chars: Cut longer documents into pieces, in characters; None for no limit.
        are_pairs: Documents are pairs (`pair_text`), whose sides are cleaned one by one.
    """

    normalize: bool
    min_chars: int
    max_chars: int | None
    are_pairs: bool = False


class Cleaned(NamedTuple):
    """A document after cleaning.

    Attributes:
        pieces: What is kept. There is one piece, unless the text is longer than
            `CleanRules.max_chars`. Every piece can be encoded as UTF-8.
        reason: Why nothing is kept, "empty" or "min_chars"; None if something is.
        n_deleted: Characters that were deleted.
    """

    pieces: list[str]
    reason: str | None
    n_deleted: int


def clean(text: str, rules: CleanRules) -> Cleaned:
    """Clean a document.

    Args:
        text: The document as it was read.
        rules: See `CleanRules`.
    """
    if rules.are_pairs:
        return _clean_pair(text, dataclasses.replace(rules, are_pairs=False, max_chars=None))
    dropped = _SURROGATES
    if rules.normalize:
        dropped = _DROPPED
    visible = dropped.sub("", text)
    n_deleted = len(text) - len(visible)

    if rules.normalize:
        visible = _arranged(visible)
    if not visible or visible.isspace():
        return Cleaned([], "empty", n_deleted)
    if len(visible) < rules.min_chars:
        return Cleaned([], "min_chars", n_deleted)

    pieces = [visible]
    if rules.max_chars is not None:
        pieces = [piece for piece in cut(visible, rules.max_chars) if not piece.isspace()]
    return Cleaned(pieces, None, n_deleted)


def _clean_pair(text: str, rules: CleanRules) -> Cleaned:
    """Clean both sides of a pair; it is dropped if one of them is."""
    sides = [clean(side, rules) for side in pair_text.sides_of(text)]
    n_deleted = sum(side.n_deleted for side in sides)
    for side in sides:
        if side.reason:
            reason = "empty_side" if side.reason == "empty" else side.reason
            return Cleaned([], reason, n_deleted)
    return Cleaned([pair_text.SIGN.join(side.pieces[0] for side in sides)], None, n_deleted)


def normalize(text: str) -> str:
    """Return `text` in NFC, without control characters and superfluous white space.

    One space parts words, one newline parts paragraphs. Line breaks inside a paragraph become
    spaces, so the same text with other line breaks is the same document. This is the part of
    Cramming's normalisation (arXiv 2212.14034, section 4.1) that loses nothing; lowercasing,
    accents and ASCII belong to the tokenizer.
    """
    return _arranged(_DROPPED.sub("", text))


def _arranged(text: str) -> str:
    """Return `text` in NFC and with normal white space."""
    text = text.replace(_ZERO_WIDTH_SPACE, " ")
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    paragraphs = (" ".join(paragraph.split()) for paragraph in _PARAGRAPH_BREAK.split(text))
    return "\n".join(paragraph for paragraph in paragraphs if paragraph)


def cut(text: str, max_chars: int) -> list[str]:
    """Cut `text` into consecutive pieces of at most `max_chars`, which concatenate to it.

    A piece ends before white space if its second half has any, so that no word is cut there. In
    text without spaces it ends after a stop or a comma.
    """
    if len(text) <= max_chars:
        return [text]

    pieces = []
    start = 0
    while len(text) - start > max_chars:
        end = start + max_chars
        # At least one character on, or a piece could be empty.
        middle = start + max(1, max_chars // 2)
        space = max(text.rfind(" ", middle, end + 1), text.rfind("\n", middle, end + 1))
        if space > 0:
            end = space
        else:
            end = max(text.rfind(stop, middle, end) + 1 for stop in _STOPS) or end
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces

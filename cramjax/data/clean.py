"""Cleans one document: normalises Unicode and white space, and bounds the length.

These are pure functions of one document. `dedup.py` compares documents; the compressibility
filter needs tokens and is in `build.py`.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata

# Control characters that are not white space, soft hyphen, zero-width space, word joiner, byte
# order mark, lone surrogates and the two noncharacters of the basic plane. Joiners stay: Indic
# and Persian spelling needs them.
_DROPPED = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff\ud800-\udfff\ufffe\uffff]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanRules:
    """The settings of `clean`: the keys of `config.data` with the same names.

    Attributes:
        normalize: Apply `normalize`.
        min_chars: Drop shorter documents, in characters.
        max_chars: Cut longer documents into pieces, in characters; None for no limit.
    """

    normalize: bool
    min_chars: int
    max_chars: int | None


def clean(text: str, rules: CleanRules) -> tuple[list[str], str | None]:
    """Clean a document.

    Args:
        text: The document as it was read.
        rules: See `CleanRules`.

    Returns:
        The pieces that are kept, and None; or no pieces and the reason, "empty" or "min_chars".
        There is one piece, unless the text is longer than `rules.max_chars`. Every piece can be
        encoded as UTF-8.
    """
    text = normalize(text) if rules.normalize else _SURROGATES.sub("", text)
    if not text or text.isspace():
        return [], "empty"
    if len(text) < rules.min_chars:
        return [], "min_chars"

    if rules.max_chars is None:
        return [text], None
    return [piece for piece in cut(text, rules.max_chars) if not piece.isspace()], None


def normalize(text: str) -> str:
    """Return `text` in NFC, without control characters and superfluous white space.

    One space parts words, one newline parts paragraphs. Line breaks inside a paragraph become
    spaces, so the same text with other line breaks is the same document. This is the part of
    Cramming's normalisation (arXiv 2212.14034, section 4.1) that loses nothing; lowercasing,
    accents and ASCII belong to the tokenizer.
    """
    text = _DROPPED.sub("", text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    paragraphs = (" ".join(paragraph.split()) for paragraph in _PARAGRAPH_BREAK.split(text))
    return "\n".join(paragraph for paragraph in paragraphs if paragraph)


def cut(text: str, max_chars: int) -> list[str]:
    """Cut `text` into consecutive pieces of at most `max_chars`, which concatenate to it.

    A piece ends before white space if its second half has any, so that no word is cut there.
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
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces

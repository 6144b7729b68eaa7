"""Holds out blocks of long documents, where whole documents would be all or nothing.

A document is held out or trained on by its hash. One novel, or ten of them, leave nothing to
evaluate on that way. So of a document that is large against the corpus each stretch holds out its
share. Which blocks those are follows from the document alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

TRAINED = (1 << 64) - 1
"""The hash of a piece that is never held out."""

HELD_OUT = 0
"""The hash of a piece that always is."""

BLOCK_CHARS = 2048
"""A shorter block is hardly a sequence: a document needs one such block to be held out in part."""

# A larger share of the held-out text in one document is no fair sample. With all documents below
# it, the chance that none is held out is under exp(-8).
_SHARE = 1 / 8
_MAX_BLOCKS = 16
# A block begins at the next space, if there is one so near.
_NEAR_CHARS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The rule by which pieces of documents are held out.

    Attributes:
        fraction: Share of the text to hold out.
        long_chars: Documents of this length on are held out in blocks; None for no document.
    """

    fraction: float = 0.0
    long_chars: int | None = None

    def split(self, pieces: list[str], split: int) -> Iterator[tuple[str, int]]:
        """Yield each piece with the hash that decides about it, long documents in more pieces.

        Args:
            pieces: Pieces of one document, which concatenate to it.
            split: The document's own hash, in [0, 2^64).
        """
        n_chars = sum(map(len, pieces))
        if self.long_chars is None or n_chars < self.long_chars:
            yield from ((piece, split) for piece in pieces)
            return

        borders = _borders(n_chars, self.fraction, split)
        offset = 0
        for piece in pieces:
            start = 0
            for place, value in borders:
                end = _near_space(piece, place - offset)
                if start < end:
                    yield piece[start:end], value
                    start = end
            offset += len(piece)


def rule(fraction: float, n_bytes: float | None) -> HeldOut:
    """Return the rule for a corpus.

    Args:
        fraction: Share of the text to hold out.
        n_bytes: Size of the corpus, or None if it is unknown; then only whole documents are.
    """
    if not fraction or n_bytes is None:
        return HeldOut(fraction=fraction)
    long_chars = max(BLOCK_CHARS / fraction, _SHARE * fraction * n_bytes)
    return HeldOut(fraction=fraction, long_chars=int(long_chars))


def _borders(n_chars: int, fraction: float, split: int) -> list[tuple[int, int]]:
    """Return (end, hash) of the stretches of a document, in their order."""
    n_blocks = max(1, min(_MAX_BLOCKS, int(n_chars * fraction) // BLOCK_CHARS))
    stretch = n_chars / n_blocks
    block = stretch * fraction
    # The place within each stretch comes from the hash.
    shift = (stretch - block) * (split / 2**64)
    borders = []
    for number in range(n_blocks):
        start = number * stretch + shift
        borders += [(int(start), TRAINED), (int(start + block), HELD_OUT)]
    return [*borders, (n_chars, TRAINED)]


def _near_space(text: str, place: int) -> int:
    """Return the place of the next space, or `place` if that is far, within the text."""
    place = min(max(place, 0), len(text))
    space = text.find(" ", place, place + _NEAR_CHARS)
    return space if space >= 0 else place

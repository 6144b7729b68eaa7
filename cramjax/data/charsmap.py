"""Reads the rules of characters in a SentencePiece model, for the `tokenizers` library.

A charsmap is a double array (https://github.com/s-yata/darts-clone) from strings in UTF-8 to places
in a block of strings that end in a zero byte.
"""

from __future__ import annotations

import struct

import numpy as np
from tokenizers import Regex, normalizers

from cramjax.errors import UserError

STANDARD = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
"""SentencePiece's own rules: they compose characters as NFC does."""

# It ends a cluster of characters wherever it stands, and no text has it (unassigned).
_BREAK = "\ufff0"


def charsmap_steps(name: str, charsmap: bytes) -> list[normalizers.Normalizer]:
    """Return steps that follow the rules.

    The library looks rules up by clusters of characters (U+0439 U+0301, CR LF), and puts the result
    of the first character in the place of all: so each character is made a cluster of its own.
    Rules for several characters are those of NFC, up to the order of marks, to marks that NFC joins
    with a letter over another mark, and to marks on ligatures.

    Args:
        name: Of the rules; one of `STANDARD`, or another for a user's own.
        charsmap: As the model has it.

    Raises:
        UserError: if a user's own rules have one for several characters.
    """
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex(r"\Y"), _BREAK),
        normalizers.Precompiled(charsmap),
        normalizers.Replace(_BREAK, ""),
    ]
    if name in STANDARD:
        return [*steps, normalizers.NFC()]

    for source in sources(charsmap):
        if len(source) > 1:
            raise UserError(
                f"normalization_rule_tsv has a rule for {source!r}, which is several characters, "
                "which tokenizer.json cannot say; train the SentencePiece model with rules for "
                f"single characters, or one of {', '.join(STANDARD)}"
            )
    return steps


def sources(charsmap: bytes) -> list[str]:
    """Return the strings that have a rule, shortest first in bytes."""
    (n_bytes,) = struct.unpack("<I", charsmap[:4])
    units = np.frombuffer(charsmap[4 : 4 + n_bytes], "<u4").astype(np.int64)
    labels = np.arange(1, 256)
    # All nodes of a depth at once: `nodes` are the places that children are counted from.
    nodes = _offsets(units[:1])
    prefixes = [b""]
    found: list[str] = []
    while len(nodes):
        children = nodes[:, None] ^ labels  # [nodes, 255]
        inside = children < len(units)
        values = np.where(inside, units[np.where(inside, children, 0)], 0)
        parents, columns = np.nonzero(inside & ((values & 0x800000FF) == labels))

        values = values[parents, columns]
        nodes = children[parents, columns] ^ _offsets(values)
        prefixes = [
            prefixes[parent] + bytes([labels[column]])
            for parent, column in zip(parents, columns, strict=True)
        ]
        for number in np.flatnonzero(values & 0x100):
            found.append(prefixes[number].decode())
    return found


def _offsets(units: np.ndarray) -> np.ndarray:
    """Return the offsets in units of the double array, int64 [n]."""
    return (units >> 10) << ((units & 0x200) >> 6)

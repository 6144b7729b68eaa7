"""Documents to token ids: in bounded memory, on all cores, and without special tokens whatever a document says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from cramjax.data.clean import cut

_BATCH_CHARS = 1 << 22


def encode_documents(
    tokenizer: Tokenizer, texts: list[str], piece_chars: int = 1 << 14
) -> list[np.ndarray]:
    """Token ids of each text, uint32 [n_tokens]: text only, "[MASK]" in a text is six characters and no special token.

    On all cores, the GIL released meanwhile. Texts are encoded in pieces of at most `piece_chars`, cut before white
    space where there is any: the library needs some 100 bytes of memory a character, and one core, for each piece.
    """
    names = [
        token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
    ]
    pieces = [_pieces(text, piece_chars, names) for text in texts]
    flat = [piece for cuts in pieces for piece in cuts]
    encoded: list[np.ndarray] = []
    # One long document is many pieces: all at once they would need gigabytes.
    for batch in _batches(flat, _BATCH_CHARS):
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        encoded += [np.array(encoding.ids, np.uint32) for encoding in encodings]
    ends = np.cumsum([len(cuts) for cuts in pieces]).tolist()
    return [
        encoded[end - 1] if len(cuts) == 1 else np.concatenate(encoded[end - len(cuts) : end])
        for cuts, end in zip(pieces, ends, strict=True)
    ]


def _batches(pieces: list[str], max_chars: int) -> Iterator[list[str]]:
    """`pieces` in order, in batches that exceed `max_chars` by a piece at most."""
    batch, n_chars = [], 0
    for piece in pieces:
        batch.append(piece)
        n_chars += len(piece)
        if n_chars >= max_chars:
            yield batch
            batch, n_chars = [], 0
    if batch:
        yield batch


def _pieces(text: str, piece_chars: int, special: list[str]) -> list[str]:
    """`text` cut into pieces, within the name of every special token too, so that no piece holds one."""
    parts = [text]
    # A hundred sentinels are looked for as one.
    if any(name in text for name in {name.rstrip("0123456789>") or name for name in special}):
        names = re.compile(
            "|".join(rf"(?<={re.escape(name[:-1])})(?={re.escape(name[-1])})" for name in special)
        )
        parts = names.split(text)
    return [piece for part in parts for piece in cut(part, piece_chars)]

"""Encodes documents to token ids in bounded memory, on all cores.

The text of a document never becomes a special token, whatever it says.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from cramjax.data.clean import cut

_BATCH_CHARS = 1 << 22


def encode_documents(
    tokenizer: Tokenizer, texts: list[str], piece_chars: int = 1 << 14
) -> list[np.ndarray]:
    """Encode each text without special tokens: "[MASK]" in a text is six characters.

    Runs on all cores and releases the GIL. Texts are cut before white space where possible, and
    encoded piece by piece: the library needs about 100 bytes of memory per character, and one
    core, for each piece.

    Args:
        tokenizer: The tokenizer.
        texts: n documents.
        piece_chars: The most characters in a piece.

    Returns:
        n arrays uint32 [n_tokens].
    """
    added_tokens = tokenizer.get_added_tokens_decoder().values()
    special_names = [token.content for token in added_tokens if token.special]
    pieces = [_cut_pieces(text, piece_chars, special_names) for text in texts]

    # One long document is many pieces: all at once they would need gigabytes.
    encoded: list[np.ndarray] = []
    for batch in _batches(itertools.chain.from_iterable(pieces)):
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        encoded += [np.array(encoding.ids, np.uint32) for encoding in encodings]

    documents = []
    start = 0
    for document_pieces in pieces:
        end = start + len(document_pieces)
        if end - start == 1:
            documents.append(encoded[start])
        else:
            documents.append(np.concatenate(encoded[start:end]))
        start = end
    return documents


def _batches(pieces: Iterator[str]) -> Iterator[list[str]]:
    """Yield pieces in order, in batches that exceed `_BATCH_CHARS` by at most one piece."""
    batch = []
    n_chars = 0
    for piece in pieces:
        batch.append(piece)
        n_chars += len(piece)
        if n_chars >= _BATCH_CHARS:
            yield batch
            batch = []
            n_chars = 0
    if batch:
        yield batch


def _cut_pieces(text: str, piece_chars: int, special_names: list[str]) -> list[str]:
    """Cut `text` into pieces, also within the name of each special token: no piece holds one."""
    parts = [text]
    # The hundred sentinels <extra_id_N> are looked for as one, because searching takes time.
    stems = {name.rstrip("0123456789>") or name for name in special_names}
    if any(stem in text for stem in stems):
        # The place before the last character of each name.
        places = [
            rf"(?<={re.escape(name[:-1])})(?={re.escape(name[-1])})" for name in special_names
        ]
        parts = re.split("|".join(places), text)

    pieces = []
    for part in parts:
        pieces += cut(part, piece_chars)
    return pieces

"""Encodes documents to token ids in bounded memory, on all cores, and counts what is lost.

The text of a document never becomes a special token, whatever it says.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from cramjax.data.clean import cut
from cramjax.data.tally import Deletions, Tally, unknown_spans

_BATCH_CHARS = 1 << 22


class Encoder:
    """Encodes texts with one tokenizer; several threads may use it at once."""

    def __init__(self, tokenizer: Tokenizer, piece_chars: int = 1 << 11):
        """Read off the tokenizer what encoding needs.

        Args:
            tokenizer: The tokenizer.
            piece_chars: The most characters that the library gets as one text. It takes about 100
                bytes of memory a character, and the places of unknown tokens are found by encoding
                a piece again.
        """
        self._tokenizer = tokenizer
        self._piece_chars = piece_chars
        added_tokens = tokenizer.get_added_tokens_decoder().values()
        self._special_names = [token.content for token in added_tokens if token.special]
        self._unknown_id = _unknown_id(tokenizer)
        self._deletions = Deletions(tokenizer)

    def encode(self, texts: list[str]) -> tuple[list[np.ndarray], Tally]:
        """Encode each text without special tokens: "[MASK]" in a text is six characters.

        Runs on all cores and releases the GIL. Texts are cut before white space where possible,
        and encoded piece by piece.

        Args:
            texts: n documents.

        Returns:
            n arrays uint32 [n_tokens], and what was deleted or became unknown.
        """
        tally = self._deletions.tally(texts)
        pieces = [_cut_pieces(text, self._piece_chars, self._special_names) for text in texts]

        # One long document is many pieces: all at once they would need gigabytes.
        encoded: list[np.ndarray] = []
        for batch in _batches(itertools.chain.from_iterable(pieces)):
            encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            arrays = [np.array(encoding.ids, np.uint32) for encoding in encodings]
            encoded += arrays
            tally += self._tally(batch, arrays)

        documents = []
        start = 0
        for document_pieces in pieces:
            end = start + len(document_pieces)
            if end - start == 1:
                documents.append(encoded[start])
            else:
                documents.append(np.concatenate(encoded[start:end]))
            start = end
        return documents, tally

    def _tally(self, batch: list[str], arrays: list[np.ndarray]) -> Tally:
        """Count the tokens of a batch, and the text of those that are unknown."""
        tally = Tally(tokens=sum(map(len, arrays)))
        if self._unknown_id is None:
            return tally

        # Only these are encoded again, with their places in the text.
        lossy = [number for number, ids in enumerate(arrays) if (ids == self._unknown_id).any()]
        again = self._tokenizer.encode_batch(
            [batch[number] for number in lossy], add_special_tokens=False
        )
        for number, encoding in zip(lossy, again, strict=True):
            tally += unknown_spans(batch[number], encoding.ids, encoding.offsets, self._unknown_id)
        return tally


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that a tokenizer gives to text that it does not know; None: it knows all."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is not None:
        return tokenizer.token_to_id(model["unk_token"])
    return model.get("unk_id")


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

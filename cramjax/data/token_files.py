"""Encodes the kept documents of a group into files of tokens, one for each split."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cramjax.data import dedup, pair_text, tokenizers
from cramjax.data.encode import Encoder
from cramjax.data.jobs import CheckedFile, Files
from cramjax.data.manifest import SPLITS
from cramjax.data.selection import read_keep
from cramjax.data.spool import Group
from cramjax.data.tally import Tally

# Characters encoded together, for each core: the library needs about 100 bytes for each.
_BATCH_CHARS = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Encodes a group.

    For each split, `<split>.bin` holds the tokens (of type `dtype`, little-endian): documents one
    after the other, each followed by `sep`, and `<split>.lengths` their lengths with it (uint32).
    A document that is longer than a shard is cut. The record has dropped (reason → count) and the
    tally of what was lost.

    Attributes:
        group: The group.
        stem: See `Job`.
        selection: Stem of the group's `SelectJob`.
        tokenizer: Path of tokenizer.json.
        tokenizer_sha256: Its SHA-256.
        dtype: "uint16" or "uint32".
        sep: Id of the token that follows a document; None: there is none.
        max_tokens: The most tokens in a shard.
        compressibility: Most tokens a character of a document, or None.
        heldout_fraction: Share of documents that are held out.
        are_pairs: Documents are pairs: the tokens of source and target, each followed by [SEP].
            A pair that is longer than a shard is dropped.
        n_threads: Cores to encode on. The files do not depend on it.
    """

    group: Group
    stem: pathlib.Path
    selection: pathlib.Path
    tokenizer: pathlib.Path
    tokenizer_sha256: str
    dtype: str
    sep: int | None
    max_tokens: int
    compressibility: float | None
    heldout_fraction: float
    are_pairs: bool
    n_threads: int

    @property
    def name(self) -> str:
        """See `Job`."""
        return self.group.name

    def facts(self) -> list[Any]:
        """See `Job`."""
        return [*self.group.facts(), self.tokenizer_sha256]

    def make(self, files: Files) -> dict[str, Any]:
        """See `Job`."""
        # Read by the library when it first encodes in this process.
        os.environ["RAYON_NUM_THREADS"] = str(self.n_threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "false" if self.n_threads == 1 else "true"
        encoder = _load(self.tokenizer, self.tokenizer_sha256)

        writers = {}
        for split in SPLITS:
            tokens_file = files.open(f"{split}.bin")
            lengths_file = files.open(f"{split}.lengths")
            writers[split] = _Writer(tokens_file, lengths_file, self)
        dropped: collections.Counter[str] = collections.Counter()
        tally = Tally()
        for rows, texts in self._batches():
            if self.are_pairs:
                documents, is_usable, lost = self._encode_pairs(encoder, texts)
            else:
                documents, lost = encoder.encode(texts)
                is_usable = np.ones(len(documents), bool)
            tally += lost
            dropped["pair_too_long"] += int((~is_usable).sum())
            for split, chosen in self._split(rows, documents, is_usable, dropped):
                writers[split].add([documents[index] for index in np.flatnonzero(chosen)])
        return {"dropped": dict(dropped), "tally": dataclasses.asdict(tally)}

    def _encode_pairs(
        self, encoder: Encoder, texts: list[str]
    ) -> tuple[list[np.ndarray], np.ndarray, Tally]:
        """Encode pairs: source, [SEP], target.

        Returns:
            The ids of each pair, none where a side has none; which pairs a shard has room for,
            bool [n]; and what was lost.
        """
        sides = [pair_text.sides_of(text) for text in texts]
        sources = [source for source, _ in sides]
        encoded, tally = encoder.encode(sources + [target for _, target in sides])

        documents = []
        sep = np.array([self.sep], np.uint32)
        for source, target in zip(encoded[: len(texts)], encoded[len(texts) :], strict=True):
            pair = np.concatenate([source, sep, target])
            if not len(source) or not len(target):
                pair = pair[:0]
            documents.append(pair)
        has_room = np.array([len(pair) < self.max_tokens for pair in documents])
        return documents, has_room, tally

    def _batches(self) -> Iterator[tuple[np.ndarray, list[str]]]:
        """Yield the kept pieces in batches: records [n] and n texts."""
        rows: list[np.void] = []
        texts: list[str] = []
        n_chars = 0
        for row, text in self.group.texts(read_keep(self.selection)):
            rows.append(row)
            texts.append(text)
            n_chars += len(text)
            if n_chars >= _BATCH_CHARS * self.n_threads:
                yield np.array(rows), texts
                rows, texts, n_chars = [], [], 0
        if texts:
            yield np.array(rows), texts

    def _split(
        self,
        rows: np.ndarray,
        documents: list[np.ndarray],
        is_usable: np.ndarray,
        dropped: collections.Counter[str],
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Apply the filters that need tokens; yields each split, and which documents go there.

        Args:
            rows: Records `spool.ROW` [n].
            documents: Token ids of each of the n pieces.
            is_usable: Pieces that are not dropped already, bool [n].
            dropped: Reason → count; what is dropped here is added.
        """
        n_tokens = np.array([len(tokens) for tokens in documents])
        dropped["no_tokens"] += int((n_tokens == 0).sum())
        keep = is_usable & (n_tokens > 0)

        if self.compressibility is not None:
            # Cramming, arXiv 2212.14034, section 4.4, with the tokenizer that the model gets.
            is_compressible = n_tokens < self.compressibility * rows["n_chars"]
            dropped["compressibility"] += int((keep & ~is_compressible).sum())
            keep &= is_compressible

        is_heldout = dedup.is_heldout(rows["split"], self.heldout_fraction)
        yield "train", keep & ~is_heldout
        yield "heldout", keep & is_heldout


class _Writer:
    """Writes documents of one split."""

    def __init__(self, tokens_file: CheckedFile, lengths_file: CheckedFile, job: EncodeJob):
        self._tokens_file = tokens_file
        self._lengths_file = lengths_file
        self._dtype = np.dtype(job.dtype).newbyteorder("<")
        end = [] if job.sep is None else [job.sep]
        self._end = np.array(end, np.uint32)
        self._room = job.max_tokens - len(end)

    def add(self, documents: list[np.ndarray]) -> None:
        """Write each document (token ids [n])."""
        pieces = []
        lengths = []
        for tokens in documents:
            for start in range(0, len(tokens), self._room):
                piece = tokens[start : start + self._room]
                pieces += [piece, self._end]
                lengths.append(len(piece) + len(self._end))
        if pieces:
            self._tokens_file.write(np.concatenate(pieces).astype(self._dtype).tobytes())
            self._lengths_file.write(np.array(lengths, "<u4").tobytes())


@functools.lru_cache(maxsize=1)
def _load(path: pathlib.Path, _sha256: str) -> Encoder:
    """Load a tokenizer, once in a process; `_sha256` tells another one at the same path."""
    return Encoder(tokenizers.load(path)[0])

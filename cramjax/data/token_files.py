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
    after the other, each followed by [SEP], and `<split>.lengths` their lengths with it (uint32).
    A document that is longer than a shard is cut. The record has dropped (reason → count) and the
    tally of what was lost.

    Attributes:
        group: The group.
        stem: See `Job`.
        selection: Stem of the group's `SelectJob`.
        tokenizer: Path of tokenizer.json.
        tokenizer_sha256: Its SHA-256.
        dtype: "uint16" or "uint32".
        sep: Id of [SEP].
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
    sep: int
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
                documents, lost = self._encode_pairs(encoder, texts, dropped)
            else:
                documents, lost = encoder.encode(texts)
            tally += lost
            for split, chosen in self._split(rows, documents, dropped):
                writers[split].add([documents[index] for index in np.flatnonzero(chosen)])
        return {"dropped": dict(dropped), "tally": dataclasses.asdict(tally)}

    def _encode_pairs(
        self, encoder: Encoder, texts: list[str], dropped: collections.Counter[str]
    ) -> tuple[list[np.ndarray], Tally]:
        """Encode pairs: source, [SEP], target; one that cannot be used becomes empty."""
        sides = [pair_text.sides_of(text) for text in texts]
        sources = [source for source, _ in sides]
        encoded, tally = encoder.encode(sources + [target for _, target in sides])

        documents = []
        sep = np.array([self.sep], np.uint32)
        nothing = np.empty(0, np.uint32)
        for source, target in zip(encoded[: len(texts)], encoded[len(texts) :], strict=True):
            pair = np.concatenate([source, sep, target])
            if not len(source) or not len(target):
                pair = nothing
            elif len(pair) >= self.max_tokens:
                dropped["pair_too_long"] += 1
                # It is no document without tokens.
                dropped["no_tokens"] -= 1
                pair = nothing
            documents.append(pair)
        return documents, tally

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
        dropped: collections.Counter[str],
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Apply the filters that need tokens; yields each split, and which documents go there.

        Args:
            rows: Records `spool.ROW` [n].
            documents: Token ids of each of the n pieces.
            dropped: Reason → count; what is dropped here is added.
        """
        n_tokens = np.array([len(tokens) for tokens in documents])
        keep = n_tokens > 0
        dropped["no_tokens"] += int((~keep).sum())

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
        self._sep = np.array([job.sep], np.uint32)
        self._room = job.max_tokens - 1

    def add(self, documents: list[np.ndarray]) -> None:
        """Write each document (token ids [n])."""
        pieces = []
        lengths = []
        for tokens in documents:
            for start in range(0, len(tokens), self._room):
                piece = tokens[start : start + self._room]
                pieces += [piece, self._sep]
                lengths.append(len(piece) + 1)
        if pieces:
            self._tokens_file.write(np.concatenate(pieces).astype(self._dtype).tobytes())
            self._lengths_file.write(np.array(lengths, "<u4").tobytes())


@functools.lru_cache(maxsize=1)
def _load(path: pathlib.Path, _sha256: str) -> Encoder:
    """Load a tokenizer, once in a process; `_sha256` tells another one at the same path."""
    return Encoder(tokenizers.load(path)[0])
